"""The keys of a cluster: CURVE encryption, admission of peers, and the messages of each role.

A cluster's key directory, created on the server's host::

    DIR/
      server.key_secret     never leaves the server's host
      server.key
      workers/NAME.key      the admitted keys of each role; deleting a file
      clients/NAME.key      revokes the key and ends its connections
      operators/NAME.key
      standbys/NAME.key
      tokens/ID.key         see ``dist_net.wire.invitation``
      NAME/                 copy this directory, and nothing else, to the peer's host
        server.key
        worker.key_secret   or client.key_secret, or operator.key_secret

A *worker* trains, or answers for a pool. A *client* watches a run, or follows it to serve it. An
*operator* may also end a run. A *standby* receives the whole run, and
serves it if the server is lost: its key pair is then the server's. The holder of a *token* may only
enroll its own key. Key files have the format of ``zmq.auth``'s certificates.
"""

import errno
import hashlib
import logging
import os
import re
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, get_args

import zmq
from zmq.auth import load_certificate
from zmq.utils import z85

from dist_net.errors import KeyFileError
from dist_net.wire.messages import (
    Enroll,
    Follow,
    ForgetMember,
    Message,
    RecipeRequest,
    Shutdown,
    SnapshotRequest,
    StatusRequest,
    WorkerMessage,
)
from dist_net.wire.serving_messages import PoolWorkerMessage

logger = logging.getLogger(__name__)

WORKER, CLIENT, OPERATOR = ROLES = "worker", "client", "operator"
STANDBY, TOKEN = "standby", "token"

_OF_ALL: set[type[Message]] = {StatusRequest, RecipeRequest}
_OF_CLIENTS = _OF_ALL | {SnapshotRequest}

MAY_SEND: dict[str, set[type[Message]]] = {
    WORKER: _OF_ALL | {*get_args(WorkerMessage), *get_args(PoolWorkerMessage)},
    CLIENT: _OF_CLIENTS,
    OPERATOR: _OF_CLIENTS | {Shutdown, ForgetMember},
    STANDBY: _OF_ALL | {*get_args(WorkerMessage), Follow, SnapshotRequest},
    TOKEN: {Enroll},
}
"""The messages that a server accepts from a peer with a key, by the key's role."""

# Encryption adds a command's name, a nonce, an authentication code and flags to a frame (CurveZMQ,
# RFC 26). ZeroMQ compares the length of the encrypted frame with its limit.
CURVE_OVERHEAD_BYTES = 8 + 8 + 16 + 1

ADMITTED, TRY_AGAIN, REFUSED = b"200", b"300", b"400"
"""Replies to ZeroMQ about a peer (ZAP, RFC 27). A refused peer does not reconnect."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SERVER_SECRET = "server.key_secret"
SERVER_PUBLIC = "server.key"
# The keys in the cluster's directory that may be used for a role, in order of preference.
_BUNDLES_FOR = {
    WORKER: (WORKER,),
    CLIENT: (OPERATOR, CLIENT, WORKER, STANDBY),
    OPERATOR: (OPERATOR, WORKER),
    STANDBY: (STANDBY,),
}
_CREATE_HINT = "'dist-net keys create DIR' on the server's host creates keys"


@dataclass(frozen=True)
class ServerKeys:
    """The key pair (Z85), and the directory of admitted keys, which a standby has yet to copy."""

    public: bytes
    secret: bytes = field(repr=False)
    allow_list: Path
    of_standby: bool = False

    @classmethod
    def admitting_no_peer(cls) -> Self:
        """Return new keys that admit no peer, to test whether an address can be bound."""
        return cls(*zmq.curve_keypair(), Path(os.devnull))


@dataclass(frozen=True)
class PeerKeys:
    """The key pair of a worker or an observer, and the server's public key (Z85)."""

    server_public: bytes
    public: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls, server_public: bytes) -> Self:
        return cls(server_public, *zmq.curve_keypair())


def has_server_keys(directory: Path) -> bool:
    return (directory / _SERVER_SECRET).exists()


def create_keys(directory: Path, pair: tuple[bytes, bytes] | None = None) -> None:
    """Create a cluster's server keys in ``directory``, which admits no peer yet.

    ``pair``: a public and a secret key; None: new ones. Raise ``KeyFileError`` if keys exist
    already or the directory is not writable.
    """
    public, secret = pair or zmq.curve_keypair()
    _make_directory(directory)  # mkdir(parents=True) sets no mode on parents
    for role in ROLES:
        _make_directory(allow_list_of(directory, role))
    write_key(directory / _SERVER_SECRET, public, secret)
    write_key(directory / SERVER_PUBLIC, public)


def make_keys(directory: Path) -> None:
    """Create a cluster's keys, and an operator's for this host, unless they exist."""
    if not has_server_keys(directory):
        create_keys(directory)
        add_keys(directory, OPERATOR)


def add_keys(directory: Path, role: str = WORKER, name: str | None = None) -> Path:
    """Create and admit a peer's keys; return the directory to copy to its host.

    The name defaults to the role. A running server admits the peer at once. Raise KeyFileError.
    """
    name = role if name is None else name
    taken_names = {path.name for path in map(partial(allow_list_of, directory), MAY_SEND)}
    if not _NAME.fullmatch(name) or name in taken_names:
        raise KeyFileError(
            f"{name!r} cannot be the name of a {role}; expected letters, digits, '-', '_' and '.', "
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
    """Create the directory that ``load_peer_keys`` reads; raise ``KeyFileError``."""
    write_key(directory / _secret_name(role), keys.public, keys.secret)
    write_key(directory / SERVER_PUBLIC, keys.server_public)


def allow_list_of(directory: Path, role: str) -> Path:
    return directory / f"{role}s"


def _secret_name(role: str) -> str:
    return f"{role}.key_secret"


def load_server_keys(directory: Path, *, of_standby: bool = False) -> ServerKeys:
    """Read a server's keys, or raise ``KeyFileError``. A standby's may admit no worker yet."""
    public, secret = _load_pair(directory / _SERVER_SECRET)
    allowed, faults = allowed_keys(directory)
    if faults:
        raise faults[0]
    if not allowed and not of_standby:
        raise KeyFileError(
            f"no worker is admitted: {allow_list_of(directory, WORKER)} contains no .key file; "
            f"add one with dist-net keys create {shlex.quote(str(directory))} --worker NAME"
        )
    return ServerKeys(public, secret, directory, of_standby)


def load_peer_keys(directory: Path, role: str = WORKER) -> PeerKeys:
    """Read the keys of a peer; raise ``KeyFileError``.

    ``directory`` is the peer's own, copied from the server's host; its keys may be of any role,
    because the server checks that. In the cluster's key directory, the keys of ``role`` are used.
    """
    if has_server_keys(directory):
        bundles = [directory / name for name in _BUNDLES_FOR[role]]
        directory = next(filter(Path.is_dir, bundles), directory / role)
    secrets = [directory / _secret_name(each) for each in (role, *ROLES, STANDBY)]
    public, secret = _load_pair(next(filter(Path.exists, secrets), secrets[0]))
    return PeerKeys(read_public_key(directory / SERVER_PUBLIC), public, secret)


def secure_server(socket: zmq.Socket[bytes], keys: ServerKeys) -> None:
    """Require encryption at later binds of the socket; an ``AllowList`` admits the peers."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    _encrypt(socket, keys)


def secure_client(socket: zmq.Socket[bytes], keys: PeerKeys) -> None:
    """Encrypt later connections of the socket; they reach no other server than the keys'."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server_public)
    _encrypt(socket, keys)


def _encrypt(socket: zmq.Socket[bytes], own: ServerKeys | PeerKeys) -> None:
    """Set the own keys, and add the overhead of encryption to the maximum length of a frame."""
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public)
    longest_frame = int(socket.getsockopt(zmq.MAXMSGSIZE))
    socket.setsockopt(zmq.MAXMSGSIZE, longest_frame + CURVE_OVERHEAD_BYTES)


def role_refusal(roles: frozenset[str], kind: type[Message]) -> str | None:
    """Return why a peer with these roles may not send such a message, or None if it may."""
    if any(kind in MAY_SEND[role] for role in roles):
        return None
    if not roles:
        return "this key is no longer admitted: its token was revoked, or its file deleted"
    needed = next((role for role, kinds in MAY_SEND.items() if kind in kinds), None)
    if needed is None:
        remedy = "only processes of this host may"
    elif needed == TOKEN:
        remedy = "only the holder of a token may"
    else:
        remedy = f"'dist-net keys create DIR --{needed} NAME' on the server's host creates a key"
    own = " and ".join(sorted(roles))
    return f"a key with the role {own} may not send {kind.__name__}: {remedy}"


class AllowList:
    """The admitted keys of a cluster's key directory, and their roles.

    Each connection and ``refresh`` read the directory, so that added and deleted files take effect
    at once. The thread of ``dist_net.wire.connections`` calls both.
    """

    def __init__(self, keys: ServerKeys) -> None:
        self.directory, self._is_of_standby = keys.allow_list, keys.of_standby
        self._roles: dict[bytes, frozenset[str]] = {}
        self._last_error = ""
        if self.directory.is_dir():
            self.refresh()

    def admission(self, mechanism: bytes, credentials: Sequence[bytes]) -> tuple[bytes, bytes]:
        """Return ADMITTED or REFUSED, and the key (Z85).

        TRY_AGAIN with an unreadable directory, or a standby's that has no copy yet: it only admits
        this host's operator.
        """
        if mechanism != b"CURVE":
            return REFUSED, b""
        key = z85.encode(credentials[0])
        is_read = self.refresh()
        if is_read and key in self._roles:
            return ADMITTED, key
        is_copied = not self._is_of_standby or {*self._roles.values()} != {frozenset((OPERATOR,))}
        if not (is_read and is_copied):
            return TRY_AGAIN, b""
        logger.warning("key_denied key=%s", key.decode())
        return REFUSED, b""

    def refresh(self) -> bool:
        """Read the directory; return whether it is readable. Unreadable files admit no peer."""
        is_read = True
        try:
            self._roles, faults = allowed_keys(self.directory)
        except KeyFileError as error:
            is_read, faults = False, [error]
        found = "; ".join(map(str, faults))
        if found not in ("", self._last_error):  # a peer retries ten times a second
            logger.warning("allow_list_unreadable error=%s", found)
        self._last_error = found
        return is_read

    def roles_of(self, key: str) -> frozenset[str]:
        """Return the roles of a key (Z85); none once it is revoked."""
        return self._roles.get(key.encode(), frozenset())


def key_files(directory: Path, role: str) -> list[Path]:
    """Return the files of the keys of a role; raise ``KeyFileError`` if they cannot be listed."""
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
    """Return each key's roles, and errors of unreadable files. Raise ``KeyFileError``."""
    allowed: dict[bytes, frozenset[str]] = {}
    faults: list[KeyFileError] = []
    for role in MAY_SEND:
        keys, unreadable = read_key_files(directory, role)
        faults += unreadable
        for key in keys.values():
            allowed[key] = allowed.get(key, frozenset()) | {role}
    return allowed, faults


def read_key_files(directory: Path, role: str) -> tuple[dict[Path, bytes], list[KeyFileError]]:
    """Return a role's keys, and errors of unreadable files, not of files deleted meanwhile."""
    keys: dict[Path, bytes] = {}
    faults: list[KeyFileError] = []
    for path in key_files(directory, role):
        try:
            keys[path] = read_public_key(path)
        except KeyFileError as error:
            if getattr(error.__cause__, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise
            if os.path.lexists(path):
                faults.append(error)
    return keys, faults


def admitted_by(directory: Path) -> dict[str, str]:
    """Return the keys (Z85) that a run's next server must admit, by ROLEs/NAME.

    With the server's own, because its host may return as a standby. Raise ``KeyFileError``.
    """
    own = read_public_key(directory / SERVER_PUBLIC)
    name = f"server-{hashlib.sha256(own).hexdigest()[:8]}"
    admitted = {f"{allow_list_of(directory, STANDBY).name}/{name}": own.decode()}
    for role in (*ROLES, STANDBY):
        for path, key in read_key_files(directory, role)[0].items():
            if (role, path.stem) != (OPERATOR, OPERATOR):  # which stays on its host
                admitted[f"{path.parent.name}/{path.stem}"] = key.decode()
    return admitted


def admit_only(directory: Path, admitted: Mapping[str, str]) -> None:
    """Admit another server's keys by name, and this host's operator. Raise ``KeyFileError``."""
    if not isinstance(admitted, dict) or not all(isinstance(k, str) for k in admitted.values()):
        raise KeyFileError(f"the admitted keys are {admitted!r:.80}; expected keys by name")
    for role in (*ROLES, STANDBY):
        allow_list = allow_list_of(directory, role)
        wanted = {
            name.partition("/")[2]: key
            for name, key in admitted.items()
            if name.startswith(f"{allow_list.name}/")
        }
        if not all(map(_NAME.fullmatch, wanted)):
            raise KeyFileError(f"names of keys are {sorted(wanted)!r:.80}; expected plain names")
        for path, key in read_key_files(directory, role)[0].items():
            if wanted.get(path.stem) == key.decode():
                del wanted[path.stem]
            elif (role, path.stem) != (OPERATOR, OPERATOR):
                path.unlink(missing_ok=True)
        for name, text in wanted.items():
            write_key(allow_list / f"{name}.key", text.encode())


def read_public_key(path: Path) -> bytes:
    """Return the public key (Z85) in a file; raise ``KeyFileError``."""
    return _load(path)[0]


def _load_pair(path: Path) -> tuple[bytes, bytes]:
    public, secret = _load(path)
    if secret is None:
        raise KeyFileError(f"{path} contains no secret key; expected the file as it was created")
    try:
        is_pair = zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        is_pair = False
    if not is_pair:
        raise KeyFileError(
            f"the secret and the public key in {path} do not belong together; "
            "expected the file as it was created: copy it again"
        )
    if path.stat().st_mode & 0o077:
        raise KeyFileError(
            f"other users can read {path}; make it private: chmod 600 {shlex.quote(str(path))}"
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
            f"{path} contains no valid key; expected the file as it was created: copy it again"
        ) from error
    return public, secret


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KeyFileError(f"cannot create the directory {path} ({error.strerror})") from error


def write_key(path: Path, public: bytes, secret: bytes | None = None, **metadata: object) -> None:
    """Create a key file with ``metadata`` atomically. Raise ``KeyFileError``, also if it exists."""
    lines = ["metadata", *(f'    {name} = "{value}"' for name, value in metadata.items())]
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
