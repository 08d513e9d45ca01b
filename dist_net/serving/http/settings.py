"""Settings of the HTTP server: its address, its token and TLS files, and its limits."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from dist_net.errors import AddressError, InsecureAddressError, KeyFileError, SettingError
from dist_net.wire.address import Address, listen_address

SHORTEST_TOKEN = 16
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Checked when created: raises SettingError, AddressError, or InsecureAddressError.

    ``address``: HOST:PORT to listen on; with port 0 the system chooses one. If ``token`` is set,
    every request must carry it; to listen beyond this host it must be set. ``certificate`` and
    ``private_key`` are PEM files for TLS. ``max_batch_size`` is the pool's, for the models'
    configuration.

    A body has at most ``body_bytes``, and at most ``decompressed_bytes`` after decompression. The
    bodies of all requests without an answer yet have at most ``queue_bytes`` together, as in the
    pool. The request line and headers have at most ``header_bytes``, and there are at most
    ``headers`` headers. There are at most ``connections``, and on each at most ``pipelined``
    requests wait behind the one being answered.
    """

    address: str = "127.0.0.1:8000"
    token: str | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    max_batch_size: int = 8
    body_bytes: int = 16 * MIB
    decompressed_bytes: int = 32 * MIB
    queue_bytes: int = 256 * MIB
    header_bytes: int = 16 * 1024
    headers: int = 64
    connections: int = 512
    pipelined: int = 16
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 60.0
    shutdown_timeout_s: float = 15.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and value <= 0:
                raise SettingError(f"{name} is {value}; expected more than 0")
        self._check_token()
        if (self.certificate is None) != (self.private_key is None):
            raise SettingError(
                "TLS needs a certificate and its private key; expected both or neither"
            )
        if not self.listen_address.stays_on_this_host and self.token is None:
            raise InsecureAddressError(
                f"HTTP on {self.address} reaches beyond this host, where anybody could use it and "
                f"unload its models; expected a token (--token-file), with or without TLS; or "
                f"listen on 127.0.0.1"
            )

    def _check_token(self) -> None:
        """Raises SettingError for a token that no header can carry or that is easy to guess."""
        token = self.token
        if token is None:
            return
        is_line = token.isascii() and token.isprintable() and token == token.strip()
        if not is_line or len(token) < SHORTEST_TOKEN:
            raise SettingError(
                f"the token has {len(token)} characters; expected one line of at least "
                f"{SHORTEST_TOKEN} printable ASCII characters, without spaces around them"
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


def token_in(file: Path | None) -> str | None:
    """The token that HTTP clients must send; None if no file was named. Raises KeyFileError."""
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(
            f"the token cannot be read from {file}: {error}; expected a line of text"
        ) from error
    if not token:
        raise KeyFileError(
            f"the token file {file} is empty; expected a line of text, which `python3 -c "
            f"'import secrets; print(secrets.token_urlsafe())' >{shlex.quote(str(file))}` writes"
        )
    return token
