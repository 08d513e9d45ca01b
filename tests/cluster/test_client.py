"""`dist_net.Client` against the HTTP server on loopback, in front of a fake gateway."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from described import described, with_input
from dist_net import Client
from dist_net.errors import (
    AddressError,
    BadInputError,
    BadRequestError,
    DistNetError,
    DTypeError,
    ImageError,
    KeyFileError,
    ModelNotServedError,
    NoAnswerError,
    PoolUnavailableError,
    ProtocolError,
    ReloadError,
    RequestCancelledError,
    RequestExpiredError,
    RequestFailedError,
    RequestTooLargeError,
    ShapeError,
)
from dist_net.serving.client.client import MAX_OPEN, MAX_TENSORS_BYTES
from dist_net.serving.http.application import application
from dist_net.serving.http.server import HttpServer
from dist_net.serving.http.settings import HttpSettings
from dist_net.serving.pool.description import ModelDescription, ServedModel
from dist_net.serving.pool.requests import InferenceRequest, Result, Status
from fake_service import FakeService
from naming import naming

LABELS = ("cat", "dog", "newt")
SUMS = described("sums", 7, labels=LABELS, takes_images=True)
OLD_SUMS = with_input(
    SUMS, version=6, datatype="UINT8", shape=(2, 2), labels=("hen", "owl", "rook")
)
BYTES = described("bytes", input_datatype="UINT8", input_shape=(2, 2), takes_images=True)
PRICES = described("prices", classes=3, labels=(), has_classes=False)
MODELS = [
    ServedModel("sums", SUMS, {6: OLD_SUMS, 7: SUMS}, True, ""),
    ServedModel("bytes", BYTES, {1: BYTES}, True, ""),
    ServedModel("prices", PRICES, {1: PRICES}, True, ""),
    ServedModel("absent", None, {}, False, "its file is missing"),
    ServedModel("gone", None, {}, False, "it was unloaded", is_unloaded=True),
]
DEADLINE_S = 60.0
ZEROS = np.zeros(4, np.float32)


class Gateway(FakeService):
    """A fake that answers with three numbers for a row: its sum, its first element, and 0.

    ``on_infer`` replaces the answer, None leaves the request unanswered.
    """

    def __init__(self) -> None:
        super().__init__(served={each.name: each for each in MODELS})
        self.on_infer: Callable[[InferenceRequest], Result | None] = self.sums
        self.described: list[str] = []

    def models(self) -> dict[str, ServedModel]:
        return self.served

    def infer(self, request: InferenceRequest, more_follow: bool = False) -> asyncio.Future[Result]:
        self.is_silent = True
        future = super().infer(request)
        if (result := self.on_infer(request)) is not None:
            future.set_result(result)
        return future

    def sums(self, request: InferenceRequest) -> Result:
        served = self.description(request.model, request.version)
        assert served is not None
        if request.is_image:
            outputs = np.array([0.25, 0.5, 0.25], "<f4")
        else:
            rows = np.frombuffer(request.payload, served.inputs[0].dtype)
            rows = rows.reshape(-1, 4).astype("<f4")
            outputs = np.stack([rows.sum(1), rows[:, 0], 0 * rows[:, 0]], 1)
        times = {"queue_s": 0.25, "compute_s": 0.5}
        return Result(Status.OK, served.version, outputs.tobytes(), labels=served.labels, **times)

    def serve(self, *versions: ModelDescription) -> None:
        """Serve these versions of a model, the last one as the newest."""
        newest = versions[-1]
        by_number = {each.version: each for each in versions}
        self.served[newest.name] = ServedModel(newest.name, newest, by_number, True, "")


@contextmanager
def serving(gateway: Gateway, address: str = "127.0.0.1:0") -> Iterator[str]:
    """Serve over HTTP from a thread; yield the address."""
    settings = HttpSettings(address=address, half_closed_s=0.1)
    server = HttpServer(application(gateway, settings))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.serve(),))
    thread.start()
    try:
        yield server.url
    finally:
        loop.call_soon_threadsafe(server.stop)
        for future in gateway.futures:
            loop.call_soon_threadsafe(future.cancel)
        thread.join()
        loop.close()


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def address(gateway: Gateway) -> Iterator[str]:
    with serving(gateway) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout_s=DEADLINE_S) as client:
        yield client


def test_rows_are_answered_as_rows_and_one_row_as_one(client: Client) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    outputs = client.infer("sums", rows)
    np.testing.assert_array_equal(outputs.probabilities, [[6, 0, 0], [22, 4, 0]])
    assert (outputs.version, outputs.queue_s, outputs.compute_s) == (7, 0.25, 0.5)
    np.testing.assert_array_equal(client.infer("sums", rows[1]).probabilities, [22, 4, 0])


def test_predictions_have_the_types_of_a_loaded_models(client: Client) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    for predict in client.predict, client.probabilities:
        np.testing.assert_array_equal(predict("sums", rows), [[6, 0, 0], [22, 4, 0]])
    np.testing.assert_array_equal(client.predict("prices", rows)[:, 0], [6, 22])
    with pytest.raises(BadRequestError):
        client.probabilities("prices", rows)


def test_outputs_have_the_classes_of_the_version_that_computed_them(
    client: Client, gateway: Gateway
) -> None:
    assert client.infer("sums", ZEROS).labels == LABELS
    gateway.serve(SUMS, replace(SUMS, version=8, labels=("a", "b", "c"), unknown_below=0.6))
    outputs = client.submit_image("sums", b"image").result()
    assert (outputs.version, outputs.likeliest(1)[0].label, outputs.is_unknown()) == (8, "b", True)
    old = client.submit_image("sums", b"image", version=7).result()
    assert (old.version, old.likeliest(1)[0].label, old.is_unknown()) == (7, "dog", False)


def test_an_answer_counts_although_its_version_is_replaced_before_it_is_read(
    client: Client, gateway: Gateway
) -> None:
    gateway.on_infer = lambda _: None
    pending = client.submit("sums", ZEROS)
    while not gateway.futures:
        threading.Event().wait(0.01)
    (request,), (future,) = gateway.requests, gateway.futures
    answer = gateway.sums(request)
    gateway.serve(replace(SUMS, version=8, labels=("a", "b", "c")))
    assert {each.version for each in client.models() if each.name == "sums"} == {8}
    future.get_loop().call_soon_threadsafe(future.set_result, answer)
    outputs = pending.result()
    assert (outputs.version, outputs.labels) == (SUMS.version, LABELS)


def test_a_summary_is_requested_again_when_an_input_does_not_fit_any_more(
    client: Client, gateway: Gateway
) -> None:
    client.infer("sums", ZEROS)
    gateway.serve(with_input(SUMS, version=8, shape=(5,)))
    with pytest.raises(BadRequestError, match=naming("sums", -1, 5)):
        client.infer("sums", ZEROS)
    with pytest.raises(ShapeError, match=naming("'sums'", (5,))):
        client.infer("sums", ZEROS)


def test_a_named_version_answers_with_its_own_shape_and_labels(
    client: Client, gateway: Gateway
) -> None:
    pixels = np.full((1, 2, 2), 50, np.uint8)
    outputs = client.infer("sums", pixels, version=6)
    (request,) = gateway.requests
    assert (request.version, bytes(request.payload)) == (6, pixels.tobytes())
    assert outputs.likeliest(1)[0].label == "hen"
    assert client.submit_image("sums", b"image", version=6).result().labels[0] == "hen"
    with pytest.raises(ShapeError, match=naming((1, 4), "'sums'", (2, 2))):
        client.infer("sums", np.zeros((1, 4), np.float32), version=6)
    with pytest.raises(DTypeError, match=naming("float32", "'sums'", "uint8")):
        client.infer("sums", np.zeros((1, 2, 2), np.float32), version=6)
    with pytest.raises(ModelNotServedError, match=naming("'sums'", "version 5", "6, 7")):
        client.infer("sums", np.zeros((1, 4), np.float32), version=5)


def test_inputs_are_converted_within_their_kind(client: Client) -> None:
    columns = np.arange(8.0).reshape(4, 2).T  # neither float32 nor contiguous
    np.testing.assert_array_equal(
        client.infer("sums", columns).probabilities, [[12, 0, 0], [16, 1, 0]]
    )
    pixels = np.full((1, 2, 2), 200, np.uint8)
    assert client.infer("bytes", pixels).probabilities[0, 0] == 800
    with pytest.raises(DTypeError, match=naming("float32", "'bytes'", "uint8")):
        client.infer("bytes", np.zeros((1, 2, 2), np.float32))


@pytest.mark.parametrize("shape", [(5,), (2, 5), (1, 1, 4), ()])
def test_inputs_of_another_shape_are_refused_here(client: Client, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=naming("'sums'", (4,))):
        client.submit("sums", np.zeros(shape, np.float32))


def test_a_request_that_is_too_large_is_refused_here(client: Client) -> None:
    rows = np.zeros((MAX_TENSORS_BYTES // 16 + 1, 4), np.float32)
    with pytest.raises(RequestTooLargeError, match=f"{MAX_TENSORS_BYTES:,}"):
        client.submit("sums", rows)
    with pytest.raises(RequestTooLargeError):
        client.classify("sums", bytes(MAX_TENSORS_BYTES + 1))
    assert client.infer("sums", rows[:1]).probabilities[0, 0] == 0


def test_rows_of_many_bytes_are_split_although_they_are_few(
    client: Client, gateway: Gateway
) -> None:
    gateway.serve(described("wide", input_datatype="UINT8", input_shape=(9 << 20,)))
    gateway.on_infer = lambda request: Result(Status.OK, 1, bytes(12 * request.rows))
    assert client.infer("wide", np.zeros((4, 9 << 20), np.uint8)).values.shape == (4, 3)
    assert sorted(each.rows for each in gateway.requests) == [1, 3]


def test_the_inputs_may_be_overwritten_at_once(client: Client) -> None:
    row = np.ones(4, np.float32)
    pending = client.submit("sums", row)
    row[:] = 5
    assert pending.result().probabilities[0] == 4


def test_many_requests_are_open_at_once_and_each_has_its_own_answer(
    client: Client, gateway: Gateway
) -> None:
    def reverse(_: InferenceRequest) -> None:
        if len(gateway.futures) == MAX_OPEN:
            for future, each in reversed([*zip(gateway.futures, gateway.requests, strict=True)]):
                future.set_result(gateway.sums(each))

    gateway.on_infer = reverse
    pending = [client.submit("sums", np.full(4, i, np.float32)) for i in range(MAX_OPEN)]
    assert [each.result().probabilities[1] for each in pending] == list(range(MAX_OPEN))


def test_no_more_requests_are_open_than_a_client_may_have(client: Client, gateway: Gateway) -> None:
    gateway.on_infer = lambda _: None
    pending = [client.submit("sums", ZEROS) for _ in range(MAX_OPEN)]
    with pytest.raises(RequestExpiredError, match=str(MAX_OPEN)):
        client.submit("sums", ZEROS, timeout_s=0.2)
    for each in pending:
        each.cancel()


def test_a_version_and_a_time_travel_with_a_request(client: Client, gateway: Gateway) -> None:
    client.infer("sums", np.zeros((2, 2), np.uint8), version=6, timeout_s=3.0)
    client.infer("sums", ZEROS)
    first, second = gateway.requests
    assert (first.version, second.version) == (6, None)
    assert first.timeout_s is not None
    assert 0 < first.timeout_s <= 3.0
    assert second.timeout_s is not None
    assert 3.0 < second.timeout_s <= DEADLINE_S


def test_the_models_and_the_pool_are_described(client: Client) -> None:
    sums, _, prices, absent, gone = client.models()
    assert (sums.has_classes, prices.has_classes, prices.max_batch_size) == (True, False, 8)
    assert (sums.versions, sums.input_shape, sums.labels) == ((6, 7), (4,), LABELS)
    assert (absent.is_ready, absent.reason, absent.classes) == (False, "its file is missing", 0)
    assert (absent.is_unloaded, gone.is_unloaded) == (False, True)
    assert client.status()["models"][0]["name"] == "sums"


def test_an_image_is_sent_as_it_is_and_pixels_as_a_png(
    client: Client, gateway: Gateway, tmp_path: Path
) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"what a worker decodes")
    assert [each.label for each in client.classify("sums", path, top=2)] == ["dog", "cat"]
    client.classify("sums", b"likewise")
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    (likeliest, *_) = client.classify("bytes", pixels)
    assert (likeliest.label, likeliest.probability) == ("1", 0.5)  # a class without a label
    of_path, of_bytes, of_pixels = (bytes(each.payload) for each in gateway.requests)
    assert (of_path, of_bytes) == (b"what a worker decodes", b"likewise")
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(of_pixels))), pixels)


@pytest.mark.parametrize("image", ["nowhere.jpg", np.zeros((2, 2, 7), np.uint8), None])
def test_what_is_no_image_is_refused_here(client: Client, image: Any) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.jpg|\(H, W, 3\) uint8"):
        client.classify("sums", image)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.BAD_INPUT, BadRequestError),
        (Status.NOT_FOUND, ModelNotServedError),
        (Status.UNAVAILABLE, PoolUnavailableError),
        (Status.EXPIRED, RequestExpiredError),
        (Status.FAILED, RequestFailedError),
    ],
)
def test_each_way_to_fail_is_an_error_of_its_own(
    client: Client, gateway: Gateway, status: Status, error: type[DistNetError]
) -> None:
    gateway.on_infer = lambda _: Result(status, reason="that is why", retry_after_s=2.5)
    with pytest.raises(error, match=r"^that is why$") as caught:
        client.infer("sums", ZEROS)
    if isinstance(caught.value, PoolUnavailableError):
        assert caught.value.retry_after_s == 2.5


def test_a_model_that_is_not_there_is_named(client: Client) -> None:
    with pytest.raises(ModelNotServedError, match=naming("'sum'", "sums")):
        client.infer("sum", np.zeros(4))
    with pytest.raises(ModelNotServedError, match="a/b"):
        client.infer("a/b", np.zeros(4))
    with pytest.raises(PoolUnavailableError, match=naming("'absent'", "its file is missing")):
        client.classify("absent", b"image")
    with pytest.raises(ModelNotServedError, match="it was unloaded"):
        client.infer("gone", np.zeros(4, np.float32))


def until_cancelled(gateway: Gateway) -> None:
    while not (gateway.futures and all(future.cancelled() for future in gateway.futures)):
        threading.Event().wait(0.01)


def test_a_gateway_that_does_not_answer_in_time_cancels_the_request(
    client: Client, gateway: Gateway
) -> None:
    gateway.on_infer = lambda _: None
    with pytest.raises(NoAnswerError, match=naming("0.1 s")):
        client.infer("sums", ZEROS, timeout_s=0.1)
    until_cancelled(gateway)


def test_a_cancelled_request_has_no_result_and_delays_no_other(
    client: Client, gateway: Gateway
) -> None:
    gateway.on_infer = lambda request: (
        None if bytes(request.payload) == ZEROS.tobytes() else gateway.sums(request)
    )
    pending = client.submit("sums", ZEROS)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pending.result)
        assert client.infer("sums", np.ones(4, np.float32)).probabilities[0] == 4
        while not any(bytes(each.payload) == ZEROS.tobytes() for each in gateway.requests):
            threading.Event().wait(0.01)
        assert not waiting.done()
        pending.cancel()
        with pytest.raises(RequestCancelledError):
            waiting.result()
    while not any(future.cancelled() for future in gateway.futures):
        threading.Event().wait(0.01)


def test_threads_take_turns_and_get_their_own_answers(client: Client) -> None:
    def are_right(thread: int) -> bool:
        rows = np.full((100, 4), thread, np.float32)
        return all((client.infer("sums", row).probabilities[1] == thread) for row in rows)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(are_right, range(4)))


def test_labels_of_any_number_are_described(client: Client, gateway: Gateway) -> None:
    labels = tuple(f"a label of ImageNet-21k, number {index:05}" for index in range(21_843))
    gateway.serve(described("sums", 7, labels=labels, takes_images=True))
    assert client.models()[0].labels == labels
    assert client.submit_image("sums", b"image").result().labels == labels


def test_closing_cancels_what_is_open(address: str, gateway: Gateway) -> None:
    gateway.on_infer = lambda _: None
    with Client(address, timeout_s=DEADLINE_S) as client:
        pending = client.submit("sums", ZEROS)
        while not gateway.requests:
            threading.Event().wait(0.01)
    until_cancelled(gateway)
    with pytest.raises(RequestCancelledError):
        pending.result()


def test_a_call_waits_for_a_gateway_that_restarts() -> None:
    with serving(Gateway()) as address:
        client = Client(address, timeout_s=DEADLINE_S)
        assert client.infer("sums", ZEROS).version == 7
    with client, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.infer, "sums", ZEROS)
        with serving(Gateway(), address.removeprefix("http://")):
            assert waiting.result().version == 7


def test_a_request_that_was_sent_is_not_sent_again() -> None:
    """A server, a fake, that ends the connection of each request."""
    received = 0
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            nonlocal received
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    received += connection.recv(65536).startswith(b"GET")
                    connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with (
            Client(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=1.0) as client,
            pytest.raises(NoAnswerError),
        ):
            client.models()
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert received == 1


def test_nobody_there_is_an_error_in_time() -> None:
    with (
        Client("http://127.0.0.1:9", timeout_s=0.1) as client,
        pytest.raises(NoAnswerError, match=naming("127.0.0.1:9", "0.1 s")),
    ):
        client.models()


def test_an_answer_of_another_server_is_one() -> None:
    """A server, a fake, that answers everything alike."""
    content = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnot JSON!"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                while connection.recv(65536):
                    connection.sendall(content)

        thread = threading.Thread(target=answer)
        thread.start()
        with Client(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=5.0) as client:
            for call in client.models, client.status, lambda: client.infer("sums", ZEROS):
                with pytest.raises(ProtocolError, match="not JSON!"):
                    call()
        thread.join()


def test_models_are_reloaded_and_unloaded(client: Client, gateway: Gateway) -> None:
    assert client.reload("sums") == 8
    client.unload("sums")
    assert (
        client.reload("sums", share=0.5) == client.confirm("sums") == client.rollback("sums") == 8
    )
    assert gateway.done_to_models == [
        *("reload sums", "unload sums"),
        *("reload sums 0.5", "confirmed sums", "rolled back sums"),
    ]
    gateway.scripted = [Result(Status.FAILED, reason="its file is missing")]
    with pytest.raises(ReloadError, match="its file is missing"):
        client.reload("sums")
    with pytest.raises(ReloadError, match="'nothing'"):
        client.unload("nothing")


def test_more_rows_than_a_batch_are_split_and_answered_by_one_version(
    client: Client, gateway: Gateway
) -> None:
    rows = np.arange(4 * 300, dtype=np.float32).reshape(-1, 4)
    outputs = client.infer("sums", rows)
    np.testing.assert_array_equal(outputs.probabilities[:, 0], rows.sum(1))
    assert sorted(each.rows for each in gateway.requests) == [4] + [8] * 37
    assert {each.version for each in gateway.requests} == {7}
    assert (outputs.version, outputs.queue_s, outputs.compute_s) == (7, 0.25, 38 * 0.5)
    client.infer("sums", rows[:8])
    assert gateway.requests[-1].version is None


def test_split_rows_are_for_the_version_that_is_served_now(
    client: Client, gateway: Gateway
) -> None:
    rows = np.ones((20, 4), np.float32)
    client.infer("sums", rows[:1])  # the client knows version 7
    gateway.serve(replace(SUMS, version=8))
    assert client.infer("sums", rows).probabilities.shape == (20, 3)
    assert {each.version for each in gateway.requests[1:]} == {8}


def test_the_numbers_of_a_regression_are_values_not_probabilities(client: Client) -> None:
    outputs = client.infer("prices", np.ones((2, 4), np.float32))
    np.testing.assert_array_equal(outputs.values[:, 0], [4, 4])
    for read in (lambda: outputs.probabilities, outputs.likeliest, outputs.is_unknown):
        with pytest.raises(BadRequestError, match=r"Outputs\.values"):
            read()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("tcp://127.0.0.1:8001", "ZeroMQ.*http://HOST:PORT"),
        ("127.0.0.1:8000", "http://HOST:PORT"),
        ("http://127.0.0.1:8000/v2", "http://HOST:PORT"),
        ("http://127.0.0.1:x", "http://HOST:PORT"),
        ("http://", "http://HOST:PORT"),
    ],
)
def test_an_address_that_is_none_of_a_pool_is_refused(address: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        Client(address)


def test_unusable_tokens_and_certificates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="ASCII"):
        Client("http://127.0.0.1:8000", "tok\nen")
    with pytest.raises(KeyFileError, match="PEM"):
        Client("https://127.0.0.1:8000", certificates=tmp_path / "none")


def test_errors_of_a_request_are_bad_input() -> None:
    assert issubclass(BadRequestError, BadInputError)
    assert issubclass(ModelNotServedError, BadInputError)
