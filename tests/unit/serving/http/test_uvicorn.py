"""What is relied on of uvicorn beyond its documentation: a new release may change any of it."""

import asyncio
import inspect
from collections.abc import Iterator

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)


@pytest.fixture
def connection() -> Iterator[HttpToolsProtocol]:
    """A connection with a request that has begun."""
    configuration = uvicorn.Config(lambda *_: None, interface="asgi3", lifespan="off")  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()
    state = uvicorn.Server(configuration).server_state
    connection = HttpToolsProtocol(configuration, state, {}, loop)
    connection.on_message_begin()
    yield connection
    loop.close()


def test_a_connection_has_what_connection_py_overrides_and_reads(
    connection: HttpToolsProtocol,
) -> None:
    overridden = (
        "connection_made connection_lost data_received pause_writing resume_writing "
        "timeout_keep_alive_handler send_400_response on_message_begin on_headers_complete "
        "on_body on_message_complete"
    )
    called = "_unset_keepalive_if_required"
    read = "connections cycle flow headers loop pipeline transport url"
    for name in f"{overridden} {called}".split():
        assert inspect.isfunction(getattr(HttpToolsProtocol, name)), name
    for name in read.split():
        assert hasattr(connection, name), name
    assert {400, 431, 503} <= set(STATUS_LINE)


def test_a_request_says_how_far_its_answer_is() -> None:
    source = inspect.getsource(RequestResponseCycle.__init__)
    for name in ("response_started", "response_complete"):
        assert f"self.{name} = False" in source


def test_a_server_has_what_server_py_overrides_and_reads() -> None:
    server = uvicorn.Server(uvicorn.Config("none:none"))
    assert inspect.iscoroutinefunction(server.startup)
    assert list(inspect.signature(server.startup).parameters) == ["sockets"]
    assert callable(server.capture_signals)
    assert server.server_state.connections == set()
    assert server.started is server.should_exit is False
    # What it does with `servers`, where our listener for TLS is put.
    source = inspect.getsource(uvicorn.Server)
    for call in ("server.close()", "server.wait_closed()"):
        assert call in source
