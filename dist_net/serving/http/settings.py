"""Settings of the HTTP server: its address, its tokens and TLS files, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_net.errors import AddressError, InsecureAddressError, SettingError
from dist_net.serving.http.token_file import TokenFile
from dist_net.wire.address import Address, listen_address
from dist_net.wire.security import OPERATOR

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Checked when created: raises SettingError, AddressError, or InsecureAddressError.

    ``address``: HOST:PORT to listen on; with port 0 the system chooses one. With ``tokens``, every
    request must carry one; to listen beyond this host they are needed. Without, every process of
    this host has the ``loopback_role``. ``certificate`` and ``private_key`` are PEM files for TLS.
    ``max_batch_size`` is the pool's, for the models' configuration.

    A body has at most ``body_bytes``; the bodies of all unanswered requests together have at most
    ``queue_bytes``, as in the pool. A client must send its body, and read its answer, at
    ``min_bytes_per_s`` or faster over any ``rate_window_s``. The request line and headers have at
    most ``header_bytes``, in at most ``headers`` headers. There are at most ``connections``: a new
    one replaces the connection idle longest. On each connection at most ``pipelined`` requests
    wait while another is being answered.
    """

    address: str = "127.0.0.1:8000"
    tokens: TokenFile | None = None
    loopback_role: str = OPERATOR
    certificate: Path | None = None
    private_key: Path | None = None
    max_batch_size: int = 8
    body_bytes: int = 16 * MIB
    queue_bytes: int = 256 * MIB
    min_bytes_per_s: int = 8192
    rate_window_s: float = 10.0
    header_bytes: int = 16 * 1024
    headers: int = 64
    connections: int = 512
    pipelined: int = 16
    idle_timeout_s: float = 60.0
    shutdown_timeout_s: float = 15.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and value <= 0:
                raise SettingError(f"{name} is {value}; expected more than 0")
        if (self.certificate is None) != (self.private_key is None):
            raise SettingError(
                "TLS needs a certificate and its private key; expected both or neither"
            )
        if not self.listen_address.stays_on_this_host and self.tokens is None:
            raise InsecureAddressError(
                f"HTTP on {self.address} reaches beyond this host, where anybody could use it and "
                f"unload its models; expected tokens (--token-file), with or without TLS; or "
                f"listen on 127.0.0.1"
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
