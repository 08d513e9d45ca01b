"""What must hold before a socket is bound or connected, and why one could not be bound."""

import errno
import os
import stat
from pathlib import Path

from dist_net.errors import InsecureAddressError, ListenError
from dist_net.wire.address import Address
from dist_net.wire.probe import unix_connection

_LISTEN_REMEDIES = {
    errno.EADDRINUSE: "another process listens there: stop it, or choose another port",
    errno.EADDRNOTAVAIL: "it is not an address of this host: use one that 'ip address' shows",
    errno.ENODEV: "it is not an address of this host: use one that 'ip address' shows",
    errno.EACCES: "it is not permitted: choose a port from 1024 up, or a directory of yours",
    errno.EPERM: "it is not permitted: choose a port from 1024 up, or a directory of yours",
    errno.ENOENT: "its directory does not exist: make it first",
}


def listen_error(address: Address, number: int) -> ListenError:
    """The error for an address that could not be bound, by the system's number for the cause."""
    remedy = _LISTEN_REMEDIES.get(number, os.strerror(number))
    return ListenError(f"cannot listen on {address.text!r}: {remedy}")


def require_keys(address: Address, keys: object, action: str) -> None:
    """Raises `InsecureAddressError` for an address beyond this host without keys."""
    if keys is None and not address.stays_on_this_host:
        raise InsecureAddressError(
            f"will not {action} {address.text!r}, which reaches beyond this host, without keys: "
            "make them with 'dist-net keys create DIR' and give --keys DIR, "
            "or use tcp://127.0.0.1:PORT"
        )


def refuse_taken_path(address: Address) -> None:
    """Protect what is at a Unix socket's path: ZeroMQ deletes any file that it finds there."""
    path = Path(address.host)
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise ListenError(
            f"cannot listen on {address.text!r}: a file that is no socket is there; "
            "choose another path"
        )
    try:
        with unix_connection(address, timeout_s=1.0):
            pass
    except ConnectionRefusedError:
        return  # its process died, and left it behind
    except OSError as error:
        raise ListenError(f"cannot listen on {address.text!r}: {error.strerror}") from error
    raise listen_error(address, errno.EADDRINUSE)
