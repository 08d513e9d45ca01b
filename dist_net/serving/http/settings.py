"""How the gateway is offered over HTTP: where, to whom, and how much of anything is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_net.errors import InsecureAddressError, SettingError
from dist_net.wire.address import Address, listen_address

SHORTEST_TOKEN = 16
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Checked when it is made: raises SettingError, AddressError, or InsecureAddressError.

    ``address``: HOST:PORT to listen on; port 0 lets the system choose one. Beyond loopback either
    ``token`` is needed, which every request must bear then, or ``certificate`` and ``private_key``,
    PEM files for TLS. ``max_batch_size`` is the pool's, for the models' configuration.

    A body has at most ``body_bytes``, and ``decompressed_bytes`` once it is decompressed; those
    that are being received have at most ``received_bytes`` together. A request's line and headers
    have at most ``header_bytes``, and of headers there are at most ``headers``. There are at most
    ``connections``, and on each at most ``pipelined`` requests behind the one being answered.
    """

    address: str = "127.0.0.1:8000"
    token: str = ""
    certificate: Path | None = None
    private_key: Path | None = None
    max_batch_size: int = 8
    body_bytes: int = 16 * MIB
    decompressed_bytes: int = 32 * MIB
    received_bytes: int = 256 * MIB
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
        if self.token and not (len(self.token) >= SHORTEST_TOKEN and self.token.isascii()):
            raise SettingError(
                f"the token has {len(self.token)} characters; expected at least {SHORTEST_TOKEN}, "
                f"all of ASCII"
            )
        if (self.certificate is None) != (self.private_key is None):
            raise SettingError("TLS needs a certificate and its private key; expected both or none")
        if not (self.token or self.has_tls or self.listen_address.stays_on_this_host):
            raise InsecureAddressError(
                f"HTTP on {self.address} reaches beyond this host, where everybody could use it; "
                f"expected a token, or a certificate and private key for TLS; or listen on "
                f"127.0.0.1"
            )

    @property
    def has_tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.certificate is not None

    @property
    def listen_address(self) -> Address:
        """Where to listen."""
        return listen_address(f"tcp://{self.address}")
