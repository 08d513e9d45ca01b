"""Who may ask: checks the token, and refuses pages of other sites in a local browser; pure."""

from __future__ import annotations

import hmac
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import Scope

from dist_net.serving.http.bodies import headers_of
from dist_net.serving.http.settings import HttpSettings

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


class Guard:
    """Decides whether a request may be answered; ``open_paths`` need no token."""

    def __init__(self, settings: HttpSettings, open_paths: frozenset[str]) -> None:
        self._expected = f"Bearer {settings.token}".encode() if settings.token else None
        self._open_paths = open_paths
        self._checks_host = not (settings.token or settings.has_tls)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """A status code and the reason; None if the request may be answered."""
        headers = headers_of(scope)
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        if origin is not None and origin.partition(b"://")[2] != host:
            return (
                403,
                "the request comes from a page of another site; expected a page of this server",
            )
        if self._checks_host and not _is_this_host(host.decode("latin-1")):
            # DNS rebinding: if another site's name leads to this host, its pages pass for ours.
            return 403, (
                "the header Host is not an IP address or localhost; expected one of these; to "
                "serve under another name, use a token or TLS"
            )
        if self._expected is None or scope["path"] in self._open_paths:
            return None
        if hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            return None
        return 401, "the token is missing or wrong; expected the header Authorization: Bearer TOKEN"


@lru_cache(maxsize=64)
def _is_this_host(host: str) -> bool:
    """Whether a Host header is an IP address or localhost, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False
