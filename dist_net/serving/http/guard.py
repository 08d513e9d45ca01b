"""Access control: tokens and roles, and refusal of other sites' pages in a local browser."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from itertools import chain
from urllib.parse import urlsplit

from starlette.types import Scope

from dist_net.serving.http.bodies import headers_of
from dist_net.serving.http.replies import JSON_LENGTH
from dist_net.serving.http.settings import HttpSettings
from dist_net.wire.security import OPERATOR

HeaderValues = Mapping[bytes, bytes]

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


_UNIQUE = (b"host", b"origin", b"authorization", b"content-encoding", b"content-type", JSON_LENGTH)
# What ZeroMQ lets operators alone do; and metrics, which name every model and worker.
_OPERATORS_PATHS = ("/v2/repository/models/", "/metrics")


class Guard:
    """Decides whether a request may be answered; ``open_paths`` need no token."""

    def __init__(self, settings: HttpSettings, open_paths: frozenset[str]) -> None:
        self._settings = settings
        self._open_paths = open_paths

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return a status code and the reason; None if the request may be answered."""
        headers = headers_of(scope)
        return (
            self._malformed(scope, headers)
            or (self._foreign(headers) if self._settings.tokens is None else None)
            or self._not_allowed(scope["path"], headers)
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
        """Refuse pages of other sites, which a browser on this host may show.

        A token proves that a request is none of theirs.
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
            # DNS rebinding: if another site's name leads to this host, its pages pass for ours.
            return 403, (
                "the header Host is not an IP address or localhost; expected one of these; to "
                "serve under another name, use a token or TLS"
            )
        return None

    def _not_allowed(self, path: str, headers: HeaderValues) -> tuple[int, str] | None:
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
    """Whether a Host header is an IP address or localhost, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False
