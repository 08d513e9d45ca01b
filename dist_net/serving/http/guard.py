"""Access control: tokens and roles, and refusal of other sites' pages in a local browser."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from itertools import chain
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from dist_net.serving.http.refusals import Refusals
from dist_net.serving.http.replies import JSON_LENGTH, error_reply
from dist_net.serving.http.settings import HttpSettings
from dist_net.wire.security import OPERATOR

HeaderValues = Mapping[bytes, bytes]

_UNIQUE = (b"host", b"origin", b"authorization", b"content-encoding", b"content-type", JSON_LENGTH)
# The requests that ZeroMQ reserves for operators, and metrics, which name all models and workers.
_OPERATORS_PATHS = ("/v2/repository/models/", "/metrics")


class Guard:
    """ASGI middleware that refuses requests without permission; ``open_paths`` need no token.

    ``refusals`` counts every refusal, whether by the guard or by the application.
    """

    def __init__(
        self,
        application: ASGIApp,
        settings: HttpSettings,
        open_paths: frozenset[str],
        refusals: Refusals,
    ) -> None:
        self._application = application
        self._settings = settings
        self._open_paths = open_paths
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            send = self._refusals.noting(scope, send)
            refusal = self._refusal(scope)
            if refusal is not None:
                await error_reply(*refusal)(scope, receive, send)
                return
        await self._application(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return a status code and the reason; None if the request is permitted."""
        headers: HeaderValues = dict(scope["headers"])
        return (
            self._malformed(scope, headers)
            or (self._foreign(headers) if self._settings.tokens is None else None)
            or self._forbidden(scope["path"], headers)
        )

    def _malformed(self, scope: Scope, headers: HeaderValues) -> tuple[int, str] | None:
        sent: list[tuple[bytes, bytes]] = scope["headers"]
        limit, limit_bytes = self._settings.headers, self._settings.header_bytes
        size = len(scope["path"]) + len(scope.get("query_string", b""))
        if len(sent) > limit or size + sum(map(len, chain.from_iterable(sent))) > limit_bytes:
            return 431, (
                f"the request's line and headers are too large; expected at most {limit} headers "
                f"and {limit_bytes:,} bytes"
            )
        if len(headers) != len(sent):
            names = [name for name, _ in sent]
            repeated = [name.decode() for name in _UNIQUE if names.count(name) > 1]
            if repeated:
                return 400, f"the header {repeated[0]} is repeated; expected it once"
        return None

    def _foreign(self, headers: HeaderValues) -> tuple[int, str] | None:
        """Refuse requests from pages of other sites in a browser on this host.

        A token proves that a request does not come from such a page.
        """
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        # A proxy may rewrite Host. No page can set Sec-Fetch-Site, but not every browser sends it.
        is_same_origin = headers.get(b"sec-fetch-site") == b"same-origin"
        if origin is not None and not is_same_origin and origin.partition(b"://")[2] != host:
            return 403, (
                "the request comes from a page of another site; expected a page of this server, "
                "or a token"
            )
        if not (self._settings.has_tls or _is_this_host(host.decode("latin-1"))):
            # DNS rebinding: if another site's name resolves to this host, the browser treats its
            # pages as pages of this server.
            return 403, (
                "the header Host is not an IP address or localhost; expected one of these; to "
                "serve under another name, use a token or TLS"
            )
        return None

    def _forbidden(self, path: str, headers: HeaderValues) -> tuple[int, str] | None:
        if path in self._open_paths:
            return None
        tokens, role = self._settings.tokens, self._settings.loopback_role
        if tokens is not None:
            role = tokens.role_of(headers.get(b"authorization", b"")) or ""
        if not role:
            return 401, (
                "the token is missing or wrong; expected the header Authorization: Bearer TOKEN"
            )
        if role != OPERATOR and path.startswith(_OPERATORS_PATHS):
            return 403, (
                f"a {role} may not use {path[:80]!r}; expected the token of an operator (a line "
                f"'operator TOKEN' in the server's --token-file)"
            )
        return None


@lru_cache(maxsize=64)
def _is_this_host(host: str) -> bool:
    """Return whether a Host header is an IP address or localhost, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False
