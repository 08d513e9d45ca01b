"""Settings of the HTTP server: its address, its tokens and TLS files, and its limits."""

import hmac
import logging
import math
import re
import shlex
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from dist_net.errors import AddressError, InsecureAddressError, KeyFileError, SettingError
from dist_net.serving.gateway.client_ledger import NO_QUOTA, ClientLedger, ClientShare, Quota
from dist_net.wire.address import Address, listen_address
from dist_net.wire.security import CLIENT, OPERATOR
from dist_net.wire.serving_messages import MAX_REQUEST_BYTES

logger = logging.getLogger(__name__)

MIB = 2**20
MIN_TOKEN = 16
_MAX_TOKEN_BYTES = 64 * 1024
_READ_EVERY_S = 1.0
TEACHER = "teacher"
"""The role of a token that may also set labels; see ``Labels``."""
# The characters of a bearer token (RFC 6750, 2.1): a comment or a misspelt role is no token.
_TOKEN_LINE = re.compile(
    rf"((?P<role>{CLIENT}|{TEACHER}|{OPERATOR})\s+)?(?P<token>[A-Za-z0-9._~+/-]{{{MIN_TOKEN},}}=*)"
    rf"(\s+name=(?P<name>[\w.-]{{1,64}}))?"
    rf"(\s+rate=(?P<rate>[1-9]\d{{0,8}}))?(\s+inflight=(?P<inflight>[1-9]\d{{0,8}}))?",
    re.ASCII,
)


class Credential(NamedTuple):
    """The rights and limits of a sender; ``name``, a token's or an address, is safe to log."""

    role: str
    name: str
    quota: Quota = NO_QUOTA
    has_token: bool = True

    def share(self, ledger: ClientLedger) -> ClientShare:
        if self.has_token:
            return ledger.share_of(self.name, self.quota)
        return ledger.share_of_address(self.name)


class TokenFile:
    """Tokens, one a line: ``ROLE TOKEN``, or a TOKEN alone, an operator's.

    ROLE is ``client``, ``teacher`` or ``operator``.

    ``name=NAME``, ``rate=N`` (requests per second) and ``inflight=N`` may follow, in this order. A
    token without a name is named by a digest.

    The constructor raises KeyFileError for any other line, unless it is empty. The file is read
    again every second of use, so tokens are added and revoked without a restart: only its usable
    lines count, and if it is missing, no token is valid. Any other failure to read changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problem = ""
        self._credentials: dict[bytes, Credential] = {}
        self._read_s = time.monotonic()
        try:
            problem = self._read()
        except OSError as error:
            problem = f"cannot read tokens from {path}: {error}; expected a token on each line"
        if problem:
            raise KeyFileError(problem)

    def credential(self, authorization: bytes) -> Credential | None:
        """Return what the token in an Authorization header permits; None if it is not valid."""
        self._refresh()
        scheme, _, token = authorization.partition(b" ")
        token = token.strip()
        # Compare with every token, in constant time, so that the time reveals nothing about them.
        found = [own for each, own in self._credentials.items() if hmac.compare_digest(each, token)]
        return found[0] if found and scheme.lower() == b"bearer" else None

    def best_token(self) -> str:
        """Return an operator's token, or else a client's, to send to a server."""
        operators = [each for each, own in self._credentials.items() if own.role == OPERATOR]
        return [*operators, *self._credentials][0].decode()

    def _refresh(self) -> None:
        """Read the file again, at most once a second; a pipe can be read only once."""
        now = time.monotonic()
        if now < self._read_s + _READ_EVERY_S:
            return
        self._read_s = now
        try:
            if self._path.exists() and not self._path.is_file():
                return
            problem = self._read()
        except FileNotFoundError:
            self._credentials, problem = {}, f"{self._path} is missing: no token is valid"
        except OSError as error:
            problem = f"cannot read {self._path}: {error}; the previous tokens stay valid"
        if problem and problem != self._problem:
            logger.warning("tokens_not_valid error=%s", problem)
        self._problem = problem

    def _read(self) -> str:
        """Read the tokens from the file. Return the problem with it, or ""."""
        with self._path.open("rb") as file:
            content = file.read(_MAX_TOKEN_BYTES + 1)
        text = content[:_MAX_TOKEN_BYTES].decode(errors="replace")
        self._credentials, unusable = {}, []
        for number, line in enumerate(text.split("\n"), 1):
            found = _TOKEN_LINE.fullmatch(line.strip())
            if found is not None:
                token = found["token"].encode()
                name = found["name"] or f"token {sha256(token).hexdigest()[:8]}"
                limits = (float(found[each] or math.inf) for each in Quota._fields)
                self._credentials[token] = Credential(
                    found["role"] or OPERATOR, name, Quota(*limits)
                )
            elif line.strip():
                unusable.append(str(number))
        if len(content) > _MAX_TOKEN_BYTES or not text.strip():
            return (
                f"the token file {self._path} is empty or too long; expected 1 to "
                f"{_MAX_TOKEN_BYTES:,} bytes; `python3 -c 'import secrets; "
                f"print(secrets.token_urlsafe())' >>{shlex.quote(str(self._path))}` adds a token"
            )
        if unusable:
            return (
                f"line {', '.join(unusable[:3])} of the token file {self._path} is unusable; "
                f"expected TOKEN or 'ROLE TOKEN', a ROLE of {CLIENT}, {TEACHER} and {OPERATOR}, a "
                f"TOKEN of at least {MIN_TOKEN} letters, digits and -._~+/, and perhaps "
                f"'name=NAME rate=N inflight=N'"
            )
        return ""


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Checked when created: raises SettingError, AddressError, or InsecureAddressError.

    ``address``: HOST:PORT to listen on; with port 0 the system chooses one. With ``tokens``, every
    request must carry one; to listen beyond this host they are needed. Without, every process of
    this host is an operator. ``certificate`` and ``private_key`` are PEM files for TLS.

    A body has at most ``body_bytes``; the bodies of all unanswered requests together have at most
    ``queue_bytes``, as in the pool. The request line and headers have at most ``header_bytes``, in
    at most ``headers`` headers. A connection waits for its client at most ``body_timeout_s`` within
    a body, and ``client_timeout_s`` otherwise, less the time of the transferred bytes at
    ``min_bytes_per_s``. Of at most ``connections``, a new connection replaces the connection that
    waits longest for its client. A client that has ended its side of a connection is answered
    within ``half_closed_s``; then it counts as gone. On each connection at most ``pipelined``
    requests wait while another is being answered. ``access_log``: log every request.
    ``collects``: images are kept, which the page states.
    """

    address: str = "127.0.0.1:8000"
    tokens: TokenFile | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    body_bytes: int = MAX_REQUEST_BYTES
    queue_bytes: int = 256 * MIB
    min_bytes_per_s: int = 8192
    body_timeout_s: float = 10.0
    client_timeout_s: float = 60.0
    half_closed_s: float = 10.0
    header_bytes: int = 16 * 1024
    headers: int = 64
    connections: int = 512
    pipelined: int = 16
    access_log: bool = False
    collects: bool = False
    shutdown_timeout_s: float = 15.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) in (int, float) and value <= 0:
                raise SettingError(f"{name} is {value}; expected more than 0")
        if (self.certificate is None) != (self.private_key is None):
            raise SettingError(
                "TLS needs a certificate and its private key; expected both or neither"
            )
        if not self.listen_address.stays_on_this_host and self.tokens is None:
            raise InsecureAddressError(
                f"{self.address} reaches beyond this host, where anybody could use it and "
                f"unload its models; expected tokens (--token-file), with or without TLS; or "
                f"listen on 127.0.0.1"
            )

    def credential(self, host: str, authorization: bytes) -> Credential:
        """Return the credential of a request from ``host``; without a valid token no role."""
        if self.tokens is None:
            return Credential(OPERATOR, host, has_token=False)
        return self.tokens.credential(authorization) or Credential("", host, has_token=False)

    @property
    def expected_head(self) -> str:
        return (
            f"the request's line and headers are too large; expected at most {self.headers} "
            f"headers and {self.header_bytes:,} bytes"
        )

    @property
    def has_tls(self) -> bool:
        return self.certificate is not None

    @property
    def listen_address(self) -> Address:
        try:
            return listen_address(f"tcp://{self.address}")
        except AddressError as error:
            raise AddressError(
                f"cannot listen for HTTP on {self.address!r}; expected HOST:PORT, a name or "
                f"address of this host and a port from 0 to 65535, such as 127.0.0.1:8000"
            ) from error
