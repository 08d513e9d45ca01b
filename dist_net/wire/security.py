"""Keys of a cluster: CURVE encryption, who may connect, and what their role lets them send.

A cluster's key directory, made on the server's host::

    DIR/
      server.key_secret     never leaves the server's host
      server.key
      workers/NAME.key      who may connect, by role;
      clients/NAME.key      to shut somebody out, delete the file: that ends
      operators/NAME.key    open connections too
      tokens/ID.key         see `dist_net.wire.invitation`
      NAME/                 copy this directory, and nothing else, to that host
        server.key
        worker.key_secret   or client.key_secret, or operator.key_secret

A *worker* trains, or answers for a pool. A *client* asks a pool, and watches a run. An *operator*
is a client who may also end a run, and reload and unload models. Whoever has a *token* may have a
key of their own let in, and no more. Key files have the format of
`zmq.auth`'s certificates.
"""

import errno
import logging
import os
import re
import shlex
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

import zmq
from zmq.auth import load_certificate
from zmq.utils import z85

from dist_net.errors import KeyFileError
from dist_net.wire.messages import (
    Enrol,
    Heartbeat,
    Join,
    Leave,
    Message,
    Pull,
    Push,
    RecipeRequest,
    Shutdown,
    SnapshotRequest,
    StatusRequest,
)
from dist_net.wire.serving_messages import (
    Ask,
    BatchDone,
    Cancel,
    Describe,
    FetchArrays,
    JoinPool,
    Loaded,
    Ping,
    Reload,
    Unload,
)

logger = logging.getLogger(__name__)

WORKER, CLIENT, OPERATOR = ROLES = "worker", "client", "operator"
TOKEN = "token"

_TRAINS: set[type[Message]] = {Join, Pull, Push, Heartbeat, Leave}
_ANSWERS: set[type[Message]] = {JoinPool, Loaded, FetchArrays, BatchDone}
_ASKS: set[type[Message]] = {Ask, Cancel, Describe, Ping, SnapshotRequest}
_RULES: set[type[Message]] = {Shutdown, Reload, Unload}

MAY_SEND: dict[str, set[type[Message]]] = {
    WORKER: {StatusRequest, RecipeRequest, *_TRAINS, *_ANSWERS},
    CLIENT: {StatusRequest, RecipeRequest, *_ASKS},
    OPERATOR: {StatusRequest, RecipeRequest, *_ASKS, *_RULES},
    TOKEN: {Enrol},
}
"""What a server takes of a peer with a key, by the key's role."""

# By so much a frame is longer on the wire once it is encrypted: a command's name, a nonce, an
# authentication code and flags (CurveZMQ, RFC 26). ZeroMQ compares that length with its limit.
CURVE_OVERHEAD_BYTES = 8 + 8 + 16 + 1

ADMITTED, TRY_AGAIN, REFUSED = b"200", b"300", b"400"
"""What ZeroMQ is answered about a peer (ZAP, RFC 27); one that is refused never comes again."""

# Two changes within a clock tick of the file system's look like one.
_SETTLED_NS = 1_000_000_000
_SERVER_SECRET = "server.key_secret"
_SERVER_PUBLIC = "server.key"
# On the host of the cluster's directory everything is an operator's.
_BUNDLES_FOR = {
    WORKER: (WORKER,),
    CLIENT: (OPERATOR, CLIENT, WORKER),
    OPERATOR: (OPERATOR, WORKER),
}
_CREATE_HINT = "'dist-net keys create DIR' on the server's host makes keys"


@dataclass(frozen=True)
class ServerKeys:
    """What the server needs: its key pair (Z85 text), and the directory of who is allowed in."""

    public: bytes
    secret: bytes = field(repr=False)
    allow_list: Path

    @classmethod
    def of_nobody(cls) -> Self:
        """Keys that let nobody in: to try whether an address can be listened on."""
        return cls(*zmq.curve_keypair(), Path(os.devnull))


@dataclass(frozen=True)
class PeerKeys:
    """What a worker or an observer needs: its key pair, and the server's public key (Z85 text)."""

    server_public: bytes
    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls, server_public: bytes) -> Self:
        """A key pair that nobody has yet."""
        return cls(server_public, *zmq.curve_keypair())


def has_server_keys(directory: Path) -> bool:
    """Whether ``directory`` is a cluster's key directory already."""
    return (directory / _SERVER_SECRET).exists()


def create_keys(directory: Path) -> None:
    """Make a cluster's server keys in ``directory``; nobody is allowed in yet.

    Raises `KeyFileError` where there are keys already, or where nothing can be written.
    """
    public, secret = zmq.curve_keypair()
    _make_directory(directory)  # whose mode is not that of its parents
    for role in ROLES:
        _make_directory(allow_list_of(directory, role))
    write_key(directory / _SERVER_SECRET, public, secret)
    write_key(directory / _SERVER_PUBLIC, public)


def make_keys(directory: Path) -> None:
    """Make a cluster's keys, and those of an operator on this host, unless they are there."""
    if not has_server_keys(directory):
        create_keys(directory)
        add_keys(directory, OPERATOR)


def add_keys(directory: Path, role: str = WORKER, name: str | None = None) -> Path:
    """Make a peer's keys and allow them in; returns the directory to copy to its host.

    The name is the role's if none is given. A running server lets the new peer in at once. Raises
    `KeyFileError`.
    """
    name = role if name is None else name
    taken_names = {path.name for path in map(partial(allow_list_of, directory), MAY_SEND)}
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in taken_names:
        raise KeyFileError(
            f"{name!r} cannot be a {role}'s name; expected letters, digits, '-', '_' and '.', "
            f"beginning with a letter or digit, and none of {', '.join(sorted(taken_names))}"
        )
    server_public, _ = _load_pair(directory / _SERVER_SECRET)
    bundle, allowed = directory / name, allow_list_of(directory, role) / f"{name}.key"
    for taken in (bundle, allowed):
        if taken.exists():
            raise _exists_error(taken)
    keys = PeerKeys.new(server_public)
    write_peer_keys(bundle, keys, role)
    write_key(allowed, keys.public)
    return bundle


def write_peer_keys(directory: Path, keys: PeerKeys, role: str = WORKER) -> None:
    """Make a peer's own directory, as `load_peer_keys` reads it; raises `KeyFileError`."""
    write_key(directory / _secret_name(role), keys.public, keys.secret)
    write_key(directory / _SERVER_PUBLIC, keys.server_public)


def allow_list_of(directory: Path, role: str) -> Path:
    """The directory of the keys of a role that are let in."""
    return directory / f"{role}s"


def _secret_name(role: str) -> str:
    return f"{role}.key_secret"


def load_server_keys(directory: Path) -> ServerKeys:
    """Read the server's keys from the cluster's key directory; raises `KeyFileError`."""
    public, secret = _load_pair(directory / _SERVER_SECRET)
    allowed, faults = allowed_keys(directory)
    if faults:
        raise faults[0]
    if not allowed:
        raise KeyFileError(
            f"no worker is allowed in: {allow_list_of(directory, WORKER)} holds no .key file; "
            f"this adds one: dist-net keys create {shlex.quote(str(directory))} --worker NAME"
        )
    return ServerKeys(public, secret, directory)


def load_peer_keys(directory: Path, role: str = WORKER) -> PeerKeys:
    """Read the keys of a peer; raises `KeyFileError`.

    ``directory`` is the peer's own, as copied from the server's host, of whatever role: the server
    decides what that may do. On the server's host the cluster's key directory will do, and stands
    for the keys there that may do what ``role`` may.
    """
    if has_server_keys(directory):
        bundles = [directory / name for name in _BUNDLES_FOR[role]]
        directory = next(filter(Path.is_dir, bundles), directory / role)
    secrets = [directory / _secret_name(each) for each in (role, *ROLES)]
    public, secret = _load_pair(next(filter(Path.exists, secrets), secrets[0]))
    return PeerKeys(read_public_key(directory / _SERVER_PUBLIC), public, secret)


def secure_server(socket: zmq.Socket[bytes], keys: ServerKeys) -> None:
    """Make the socket's later binds accept only encrypted peers; an `AllowList` says which."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    _make_room_for_encryption(socket)


def secure_client(socket: zmq.Socket[bytes], keys: PeerKeys) -> None:
    """Make the socket's later connections encrypted, to nobody but the keys' server."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server_public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    _make_room_for_encryption(socket)


def _make_room_for_encryption(socket: zmq.Socket[bytes]) -> None:
    """Let frames be as long encrypted as they may be without."""
    max_frame = int(socket.getsockopt(zmq.MAXMSGSIZE))
    socket.setsockopt(zmq.MAXMSGSIZE, max_frame + CURVE_OVERHEAD_BYTES)


def role_refusal(roles: frozenset[str], kind: type[Message]) -> str | None:
    """Why a peer whose key has these roles may not send such a message; None: it may."""
    if any(kind in MAY_SEND[role] for role in roles):
        return None
    if not roles:
        return "this key is not let in any more: its token was revoked, or its file deleted"
    needed = next((role for role, kinds in MAY_SEND.items() if kind in kinds), None)
    own = " and ".join(sorted(roles))
    if needed is None:
        remedy = "only processes of this host may"
    else:
        remedy = (
            f"use a key of a {needed}, which 'dist-net keys create DIR --{needed} NAME' makes on "
            f"the server's host"
        )
    return f"this is a key of a {own}, who may not send {kind.__name__}: {remedy}"


class AllowList:
    """Who may come in by which key: what the files of a directory say.

    The directory is read at each connection, and looked at by `refresh`, so adding and deleting
    files works at once. Both are called by the thread of `dist_net.wire.connections`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._roles: dict[bytes, frozenset[str]] = {}
        self._changed_ns: list[int] = []
        self._last_error = ""

    def admission(self, mechanism: bytes, credentials: Sequence[bytes]) -> tuple[bytes, bytes]:
        """Whether a peer is ADMITTED, and its key (Z85).

        It is to TRY_AGAIN if the directory cannot be read, as when no descriptor is left.
        """
        if mechanism != b"CURVE":
            return REFUSED, b""
        key = z85.encode(credentials[0])
        if not self._read():
            return TRY_AGAIN, b""
        if key not in self._roles:
            logger.warning("event=key_denied key=%s", key.decode())
            return REFUSED, b""
        return ADMITTED, key

    def refresh(self) -> None:
        """Read the directory again if files came or went; what cannot be read changes nothing."""
        allow_lists = map(partial(allow_list_of, self.directory), MAY_SEND)
        try:
            changed_ns = [each.stat().st_mtime_ns for each in allow_lists if each.exists()]
        except OSError:  # one has gone just now
            return
        if changed_ns == self._changed_ns:
            return
        if self._read() and time.time_ns() > max(changed_ns, default=0) + _SETTLED_NS:
            self._changed_ns = changed_ns

    def _read(self) -> bool:
        """Whether the directory could be read, but for files that then admit nobody."""
        is_read = True
        try:
            self._roles, faults = allowed_keys(self.directory)
        except KeyFileError as error:
            is_read, faults = False, [error]
        found = "; ".join(map(str, faults))
        if found not in ("", self._last_error):  # a peer that retries comes ten times a second
            logger.warning("event=allow_list_unreadable error=%s", found)
        self._last_error = found
        return is_read

    def roles_of(self, key: str) -> frozenset[str]:
        """What a key (Z85) that was let in may do; nothing once it is revoked."""
        return self._roles.get(key.encode(), frozenset())


def key_files(directory: Path, role: str) -> list[Path]:
    """Return the files of the keys of a role; raises `KeyFileError` if they cannot be listed."""
    allow_list = allow_list_of(directory, role)
    try:
        return sorted(path for path in allow_list.iterdir() if path.suffix == ".key")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeyFileError(
            f"cannot read the allow-list {allow_list} ({error.strerror}); {_CREATE_HINT}"
        ) from error


def allowed_keys(directory: Path) -> tuple[dict[bytes, frozenset[str]], list[KeyFileError]]:
    """Return the roles of each allowed key, and an error for each unreadable file.

    A file that is unreadable admits nobody. Raises `KeyFileError` if the directory is unreadable,
    or this process has no free file descriptor.
    """
    allowed: dict[bytes, frozenset[str]] = {}
    faults: list[KeyFileError] = []
    for role in MAY_SEND:
        for path in key_files(directory, role):
            try:
                key = read_public_key(path)
            except KeyFileError as error:
                if getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE):
                    raise
                faults.append(error)
            else:
                allowed[key] = allowed.get(key, frozenset()) | {role}
    return allowed, faults


def read_public_key(path: Path) -> bytes:
    """The public key (Z85) in a file; raises `KeyFileError`."""
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


def write_key(path: Path, public: bytes, secret: bytes | None = None, **said: object) -> None:
    """Write a key file that was not there before, whole or not at all; raises `KeyFileError`.

    ``said`` is the certificate's metadata.
    """
    lines = ["metadata", *(f'    {name} = "{value}"' for name, value in said.items())]
    lines += ["curve", f'    public-key = "{public.decode()}"']
    if secret is not None:
        lines.append(f'    secret-key = "{secret.decode()}"')
    mode = 0o644 if secret is None else 0o600
    _make_directory(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")
        os.link(unfinished, path)
    except FileExistsError as error:
        raise _exists_error(path) from error
    except OSError as error:
        raise KeyFileError(f"cannot write {path} ({error.strerror})") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _exists_error(path: Path) -> KeyFileError:
    return KeyFileError(
        f"{path} exists, and keys are never overwritten; "
        "choose another directory or name, or delete it yourself"
    )
