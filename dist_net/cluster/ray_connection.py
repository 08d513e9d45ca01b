"""The connection of this process to a Ray cluster."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Any

from dist_net.errors import MissingExtraError, RayClusterError

ANY = "auto"
ANSWERS_WITHIN_S = 5.0


def connected(address: str) -> Any:
    """The module ``ray``, connected to the cluster at ``address``, HOST:PORT or ``auto``.

    ``auto`` is the one that this host is a node of. Raises MissingExtraError, and RayClusterError
    where there is none.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(
            "--cluster ray needs Ray, which is not installed; install it on each node with: "
            "pip install 'dist-net[ray]'"
        ) from error
    if ray.is_initialized():
        return ray
    if address != ANY:
        _require_listener(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        raise RayClusterError(
            f"no Ray cluster at {address!r}, of which this host is a node "
            f"({' '.join(str(error).split())}); expected the HOST:PORT of one, to which 'ray start "
            f"--address HOST:PORT' has joined this host"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray has one of its own
    return ray


def _require_listener(address: str) -> None:
    """Raises RayClusterError where nobody listens: Ray would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        if "://" in address or not (host and port.isdecimal()):
            raise OSError("it is not HOST:PORT")
        with contextlib.closing(
            socket.create_connection((host.strip("[]"), int(port)), ANSWERS_WITHIN_S)
        ):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RayClusterError(
            f"no Ray cluster at {address!r} ({reason}); expected the HOST:PORT that 'ray start "
            f"--head' prints, 6379 by default"
        ) from error
