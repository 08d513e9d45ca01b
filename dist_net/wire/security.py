"""Keys of a cluster: CURVE encryption, and the allow-list of those who may take part.

A cluster's key directory, made on the server's host::

    DIR/
      server.key_secret     never leaves the server's host
      server.key
      clients/NAME.key      the allow-list; to shut a worker out, delete its file
      NAME/                 copy this directory, and nothing else, to the worker's host
        server.key
        worker.key_secret

Key files have the format of `zmq.auth`'s certificates.
"""

import logging
import os
import re
import shlex
import struct
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import load_certificate
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from dist_net.errors import KeyFileError

logger = logging.getLogger(__name__)

DEFAULT_WORKER = "worker"

# By so much a frame is longer on the wire once it is encrypted: a command's name, a nonce, an
# authentication code and flags (CurveZMQ, RFC 26). ZeroMQ compares that length with its limit.
CURVE_OVERHEAD_BYTES = 8 + 8 + 16 + 1

_ZAP_DOMAIN = b"dist-net"
_ALLOW_LIST = "clients"
_SERVER_SECRET = "server.key_secret"
_SERVER_PUBLIC = "server.key"
_WORKER_SECRET = "worker.key_secret"
_CREATE_HINT = "'dist-net keys create DIR' on the server's host makes keys"


@dataclass(frozen=True)
class ServerKeys:
    """What the server needs: its key pair (Z85 text), and the directory of the allow-list."""

    public: bytes
    secret: bytes = field(repr=False)
    allow_list: Path


@dataclass(frozen=True)
class WorkerKeys:
    """What a worker or an observer needs: its key pair, and the server's public key (Z85 text)."""

    server_public: bytes
    public: bytes
    secret: bytes = field(repr=False)


def has_server_keys(directory: Path) -> bool:
    """Whether ``directory`` is a cluster's key directory already."""
    return (directory / _SERVER_SECRET).exists()


def create_keys(directory: Path) -> None:
    """Make a cluster's server keys and an empty allow-list in ``directory``.

    Raises `KeyFileError` where there are keys already, or where nothing can be written.
    """
    public, secret = zmq.curve_keypair()
    _make_directory(directory)
    _make_directory(directory / _ALLOW_LIST)
    _write(directory / _SERVER_SECRET, public, secret)
    _write(directory / _SERVER_PUBLIC, public)


def add_worker_keys(directory: Path, name: str = DEFAULT_WORKER) -> Path:
    """Make a worker's keys and allow them in; returns the directory to copy to its host.

    A running server lets the new worker in at once. Raises `KeyFileError`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == _ALLOW_LIST:
        raise KeyFileError(
            f"{name!r} cannot be a worker's name; expected letters, digits, '-', '_' and '.', "
            f"beginning with a letter or digit, and not {_ALLOW_LIST!r}"
        )
    server_public, _ = _load_pair(directory / _SERVER_SECRET)
    bundle, allowed = directory / name, directory / _ALLOW_LIST / f"{name}.key"
    for taken in (bundle, allowed):
        if taken.exists():
            raise _exists_error(taken)
    public, secret = zmq.curve_keypair()
    _make_directory(bundle)
    _write(bundle / _WORKER_SECRET, public, secret)
    _write(bundle / _SERVER_PUBLIC, server_public)
    _write(allowed, public)
    return bundle


def load_server_keys(directory: Path) -> ServerKeys:
    """Read the server's keys from the cluster's key directory; raises `KeyFileError`."""
    public, secret = _load_pair(directory / _SERVER_SECRET)
    allow_list = directory / _ALLOW_LIST
    if not _allowed_keys(allow_list):
        raise KeyFileError(
            f"no worker is allowed in: {allow_list} holds no .key file; "
            f"this adds one: dist-net keys create {shlex.quote(str(directory))} --worker NAME"
        )
    return ServerKeys(public, secret, allow_list)


def load_worker_keys(directory: Path) -> WorkerKeys:
    """Read a worker's keys; raises `KeyFileError`.

    ``directory`` is the worker's own, as copied from the server's host; on that host the
    cluster's key directory will do, and stands for its ``worker`` directory.
    """
    if not (directory / _WORKER_SECRET).exists() and (directory / DEFAULT_WORKER).is_dir():
        directory = directory / DEFAULT_WORKER
    public, secret = _load_pair(directory / _WORKER_SECRET)
    return WorkerKeys(_load_public(directory / _SERVER_PUBLIC), public, secret)


def secure_server(socket: zmq.Socket[bytes], keys: ServerKeys) -> None:
    """Make the socket's later binds accept only encrypted peers; needs `start_allow_list`."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
    _make_room_for_encryption(socket)


def secure_client(socket: zmq.Socket[bytes], keys: WorkerKeys) -> None:
    """Make the socket's later connections encrypted, to nobody but the keys' server."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server_public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    _make_room_for_encryption(socket)


def _make_room_for_encryption(socket: zmq.Socket[bytes]) -> None:
    """Let frames be as long encrypted as they may be without."""
    longest_frame = int(socket.getsockopt(zmq.MAXMSGSIZE))
    socket.setsockopt(zmq.MAXMSGSIZE, longest_frame + CURVE_OVERHEAD_BYTES)


class AllowList:
    """Answers ZeroMQ's question whether a key may come in (ZAP, RFC 27) from a directory.

    The directory is read at each connection, so adding and deleting files works at once. Start
    it before the first secured bind: without a handler ZeroMQ lets every key in.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", directory: Path) -> None:
        self._directory = directory
        self._authenticator = ThreadAuthenticator(context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(_ZAP_DOMAIN.decode(), self)

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether ``key`` (Z85) is allowed; called in the authenticator's thread."""
        try:
            is_allowed = key in _allowed_keys(self._directory)
        except KeyFileError as error:
            logger.warning("event=allow_list_unreadable error=%s", error)
            is_allowed = False
        if not is_allowed:
            logger.warning("event=key_denied domain=%s key=%s", domain, key.decode())
        return is_allowed

    def close(self) -> None:
        """Stop the thread."""
        self._authenticator.stop()


def _allowed_keys(directory: Path) -> set[bytes]:
    try:
        return {_load_public(path) for path in directory.iterdir() if path.suffix == ".key"}
    except OSError as error:
        raise KeyFileError(
            f"cannot read the allow-list {directory} ({error.strerror}); {_CREATE_HINT}"
        ) from error


def _load_public(path: Path) -> bytes:
    return _load(path)[0]


def _load_pair(path: Path) -> tuple[bytes, bytes]:
    public, secret = _load(path)
    if secret is None:
        raise KeyFileError(f"{path} holds no secret key; expected the file as it was created")
    try:
        belongs_together = zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        belongs_together = False
    if not belongs_together:
        raise KeyFileError(
            f"the secret and the public key in {path} do not belong together; "
            "expected the file as it was created: copy it again"
        )
    if path.stat().st_mode & 0o077:
        raise KeyFileError(
            f"{path} can be read by others; make it yours alone: chmod 600 {shlex.quote(str(path))}"
        )
    return public, secret


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
        if len(z85.decode(public)) != 32:
            raise ValueError("a key is 32 bytes")
    except OSError as error:
        raise KeyFileError(
            f"cannot read the key file {path} ({error.strerror or 'not found'}); {_CREATE_HINT}"
        ) from error
    except (ValueError, KeyError, struct.error) as error:
        raise KeyFileError(
            f"{path} holds no valid key; expected the file as it was created: copy it again"
        ) from error
    return public, secret


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KeyFileError(f"cannot make the directory {path} ({error.strerror})") from error


def _write(path: Path, public: bytes, secret: bytes | None = None) -> None:
    """Write a certificate that was not there before."""
    lines = ["metadata", "curve", f'    public-key = "{public.decode()}"']
    if secret is not None:
        lines.append(f'    secret-key = "{secret.decode()}"')
    try:
        mode = 0o644 if secret is None else 0o600
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError as error:
        raise _exists_error(path) from error
    except OSError as error:
        raise KeyFileError(f"cannot write {path} ({error.strerror})") from error


def _exists_error(path: Path) -> KeyFileError:
    return KeyFileError(
        f"{path} exists, and keys are never overwritten; "
        "choose another directory or name, or delete it yourself"
    )
