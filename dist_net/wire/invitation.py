"""Invitations: a server's join tokens, and the keys enrolled with them.

A token's key permits a single request: to enrol another key, which its host has just made. An
expired token, as from a shell's history, is therefore useless, and the hosts that enrolled with it
stay connected. In a cluster's key directory::

    tokens/ID.key               the token's key, and when it expires
    workers/ID-HOST-NUMBER.key  keys enrolled with it; see `dist_net.wire.security`
    clients/ID-HOST-NUMBER.key
    addresses.json              where the server listens
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shlex
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from dist_net.errors import KeyFileError, TokenError
from dist_net.wire.messages import Enrol, Enrolled, Refuse
from dist_net.wire.security import (
    CLIENT,
    ROLES,
    TOKEN,
    WORKER,
    PeerKeys,
    allow_list_of,
    allowed_keys,
    key_files,
    make_keys,
    read_public_key,
    write_key,
)
from dist_net.wire.token import JoinToken

logger = logging.getLogger(__name__)

TOKEN_LIFETIME_S = 86_400.0
MAX_LIFETIME_S = 10 * 365 * 86_400.0
MAX_KEYS_OF_A_TOKEN = 256
KEPT_AFTER_EXPIRY_S = 7 * 86_400.0
"""Until then a token is refused as expired, later as unknown."""
_ADDRESSES = "addresses.json"
_IDENTITY = re.compile("[0-9a-f]{8}")
_EXPIRES = re.compile(r'^\s*expires\s*=\s*"(\d+)"', re.MULTILINE)


@dataclass(frozen=True)
class Invitation:
    """A token without the server's addresses; ``keys`` belong to the token."""

    kind: str
    identity: str
    expires_s: int
    keys: PeerKeys

    def token(self, addresses: tuple[str, ...]) -> JoinToken:
        """Return the token of the server at these addresses."""
        public, secret = map(z85.decode, (self.keys.server_public, self.keys.secret))
        return JoinToken(self.kind, self.identity, self.expires_s, addresses, public, secret)


def invite(
    directory: Path, kind: str, lifetime_s: float = TOKEN_LIFETIME_S, now_s: float | None = None
) -> Invitation:
    """Make a token's key in a cluster's key directory, and the directory if it is missing.

    Raises `TokenError` for a lifetime out of range, and `KeyFileError`.
    """
    require_lifetime(lifetime_s)
    make_keys(directory)
    now_s = time.time() if now_s is None else now_s
    _forget_expired(directory, now_s)
    server_public = read_public_key(directory / "server.key")
    identity, keys = secrets.token_hex(4), PeerKeys.new(server_public)
    expires_s = int(now_s + lifetime_s)
    write_key(allow_list_of(directory, TOKEN) / f"{identity}.key", keys.public, expires=expires_s)
    return Invitation(kind, identity, expires_s, keys)


def require_lifetime(lifetime_s: float) -> None:
    """Raise `TokenError` for a lifetime out of range."""
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise TokenError(
            f"a token's lifetime of {lifetime_s:g} s: expected above 0, and at most "
            f"{MAX_LIFETIME_S:g} (ten years)"
        )


def remember(directory: Path, kind: str, addresses: tuple[str, ...]) -> None:
    """Store the addresses of the server with these keys, for later tokens."""
    try:
        text = json.dumps({"kind": kind, "addresses": addresses})
        (directory / _ADDRESSES).write_text(text, encoding="utf-8")
    except OSError as error:
        raise KeyFileError(f"cannot write {directory / _ADDRESSES} ({error.strerror})") from error


def invite_again(directory: Path, lifetime_s: float = TOKEN_LIFETIME_S) -> JoinToken:
    """Return another token of the server that last used these keys, with its addresses.

    Raises `KeyFileError` if there was none, and the errors of `invite`.
    """
    path = directory / _ADDRESSES
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        kind, addresses = str(told["kind"]), tuple(map(str, told["addresses"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise KeyFileError(
            f"{path} cannot be read ({error}); expected the keys of a server that was started "
            f"with --listen tcp://HOST:PORT, or a run's directory"
        ) from error
    return invite(directory, kind, lifetime_s).token(addresses)


def peer_keys_of(token: JoinToken) -> PeerKeys:
    """Return the keys in a token."""
    secret = z85.encode(token.secret)
    return PeerKeys(z85.encode(token.server_public), zmq.curve_public(secret), secret)


def enrol(directory: Path, token_key: bytes, enrolling: Enrol, now_s: float) -> Enrolled | Refuse:
    """Enrol a key with the token of key ``token_key`` (Z85), unless expired; return the answer."""
    try:
        identity, expires_s = _token_of(directory, token_key)
        _require_time_left(identity, expires_s, now_s)
        key = _checked(enrolling)
        host = re.sub(r"[^A-Za-z0-9]+", "-", enrolling.name).strip("-")[:40]
        number = hashlib.sha256(key).hexdigest()[:8]
        name = "-".join(filter(None, (identity, host, number)))
        allow_list = allow_list_of(directory, enrolling.role)
        if (allow_list / f"{name}.key").exists():  # the request came twice
            return Enrolled()
        enrolled = [each for role in (WORKER, CLIENT) for each in key_files(directory, role)]
        if sum(each.stem.startswith(f"{identity}-") for each in enrolled) >= MAX_KEYS_OF_A_TOKEN:
            raise TokenError(
                f"the token {identity} has enrolled {MAX_KEYS_OF_A_TOKEN} keys, which is the "
                f"limit: {_another(directory)}"
            )
        write_key(allow_list / f"{name}.key", key)
        try:
            _token_of(directory, token_key)  # it may have been revoked meanwhile
        except (KeyFileError, TokenError):
            (allow_list / f"{name}.key").unlink(missing_ok=True)
            raise
    except (KeyFileError, TokenError) as error:
        logger.warning("event=enrol_refused name=%s reason=%s", enrolling.name, error)
        return Refuse(str(error), may_rejoin=False)
    logger.info("event=enrolled token=%s key=%s role=%s", identity, name, enrolling.role)
    return Enrolled()


def _token_of(directory: Path, token_key: bytes) -> tuple[str, int]:
    """Return the id of the token with this key, and its time of expiry."""
    for path in allow_list_of(directory, TOKEN).glob("*.key"):
        if read_public_key(path) == token_key:
            return path.stem, _expiry_of(path)
    raise TokenError(f"this token was revoked: {_another(directory)}")


def _expiry_of(path: Path) -> int:
    try:
        found = _EXPIRES.search(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{path} cannot be read ({error}): was it deleted just now?") from error
    return int(found[1]) if found else 0


def _forget_expired(directory: Path, now_s: float) -> None:
    """Delete tokens that ended long ago, so that a server that is often started keeps few."""
    for path in allow_list_of(directory, TOKEN).glob("*.key"):
        with suppress(KeyFileError):  # another process has deleted it
            if now_s > _expiry_of(path) + KEPT_AFTER_EXPIRY_S:
                path.unlink(missing_ok=True)


def _require_time_left(identity: str, expires_s: int, now_s: float) -> None:
    if now_s > expires_s:
        raise TokenError(
            f"the token {identity} expired {ago(now_s - expires_s)} ago, by the server's clock; "
            f"on the server's host, 'dist-net keys token DIR' makes another token"
        )


def ago(seconds: float) -> str:
    """Return a duration as text."""
    for unit_s, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _checked(enrolling: Enrol) -> bytes:
    """Return the key to enrol. Raise TokenError."""
    key = enrolling.public_key.encode()
    try:
        is_key = len(z85.decode(key)) == 32
    except Exception:
        is_key = False
    if enrolling.role not in (WORKER, CLIENT) or not is_key:
        raise TokenError(
            f"cannot enrol a {enrolling.role!r:.40} with the key {enrolling.public_key!r:.60}; "
            f"expected a {WORKER} or {CLIENT} with a key of 40 characters"
        )
    return key


def _another(directory: Path) -> str:
    command = shlex.join(("dist-net", "keys", "token", str(directory)))
    return f"{command!r} makes another one on the server's host"


def revoke(directory: Path, name: str) -> list[str]:
    """Revoke the key or token of this name; with a token, every key that it has enrolled.

    A running server ends their connections within a second or two. Returns the deleted files, as
    ``workers/NAME``. Raises `KeyFileError` if the name is unknown, and, after deleting the rest,
    for each file that cannot be deleted or read.
    """
    deleted: list[str] = []
    faults: list[object] = []
    known: set[str] = set()
    # Delete the token first: `enrol` checks for it again after writing a key.
    for role in (TOKEN, *ROLES):
        try:
            files = key_files(directory, role)
        except KeyFileError as error:
            faults.append(error)
            continue
        known |= {path.stem for path in files}
        for path in files:
            is_enrolled = _IDENTITY.fullmatch(name) and path.stem.startswith(f"{name}-")
            if path.stem == name or is_enrolled:
                try:
                    path.unlink(missing_ok=True)
                    deleted.append(f"{path.parent.name}/{path.stem}")
                except OSError as error:
                    faults.append(f"cannot delete {path} ({error.strerror})")
    if not faults:
        faults += allowed_keys(directory)[1]
    if faults:
        raise KeyFileError(
            f"{'; '.join(map(str, faults))}; revoked only: {', '.join(deleted) or 'nothing'}. "
            f"Repair or delete each of these files, and revoke {name} again"
        )
    if not deleted:
        raise KeyFileError(
            f"no token or key {name!r} in {directory}; expected a token id or a key name: "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return sorted(deleted)
