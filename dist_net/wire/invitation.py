"""Invitations: tokens that a server gives out, and the keys that it lets in for them.

A token's key may do nothing but ask that another key be let in, one that its host has just made.
So a token that has expired, or is found in a shell's history, is of no use, and the hosts that came
by it go on. In a cluster's key directory::

    tokens/ID.key               until when the token lets keys in
    workers/ID-HOST-NUMBER.key  keys that were let in for it; see `dist_net.wire.security`
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
LONGEST_LIFETIME_S = 10 * 365 * 86_400.0
MOST_KEYS_OF_A_TOKEN = 256
KEPT_AFTER_EXPIRY_S = 7 * 86_400.0
"""For so long the holder of a token is told that it has expired; then it is not known any more."""
_ADDRESSES = "addresses.json"
_IDENTITY = re.compile("[0-9a-f]{8}")
_EXPIRES = re.compile(r'^\s*expires\s*=\s*"(\d+)"', re.MULTILINE)


@dataclass(frozen=True)
class Invitation:
    """A token of a server whose addresses are not known yet; ``keys`` are the token's own."""

    kind: str
    identity: str
    expires_s: int
    keys: PeerKeys

    def token(self, addresses: tuple[str, ...]) -> JoinToken:
        """The token, for the server at these addresses."""
        public, secret = map(z85.decode, (self.keys.server_public, self.keys.secret))
        return JoinToken(self.kind, self.identity, self.expires_s, addresses, public, secret)


def invite(
    directory: Path, kind: str, lifetime_s: float = TOKEN_LIFETIME_S, now_s: float | None = None
) -> Invitation:
    """Make a token's key in a cluster's key directory, which is made if there is none.

    Raises `TokenError` for a lifetime that cannot be, and `KeyFileError`.
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
    """Raise `TokenError` for a lifetime that cannot be."""
    if not 0 < lifetime_s <= LONGEST_LIFETIME_S:
        raise TokenError(
            f"a token's lifetime of {lifetime_s:g} s: expected above 0, and at most "
            f"{LONGEST_LIFETIME_S:g} (ten years)"
        )


def remember(directory: Path, kind: str, addresses: tuple[str, ...]) -> None:
    """Write down where the server of these keys listens, for later tokens."""
    try:
        text = json.dumps({"kind": kind, "addresses": addresses})
        (directory / _ADDRESSES).write_text(text, encoding="utf-8")
    except OSError as error:
        raise KeyFileError(f"cannot write {directory / _ADDRESSES} ({error.strerror})") from error


def invite_again(directory: Path, lifetime_s: float = TOKEN_LIFETIME_S) -> JoinToken:
    """Another token of the server that last used these keys, where it listened then.

    Raises `KeyFileError` if none did, and what `invite` raises.
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
    """The keys that a token carries."""
    secret = z85.encode(token.secret)
    return PeerKeys(z85.encode(token.server_public), zmq.curve_public(secret), secret)


def enrol(directory: Path, token_key: bytes, enrolling: Enrol, now_s: float) -> Enrolled | Refuse:
    """Let a key in for the token of that key (Z85), if its time is not over; the answer."""
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
        if sum(each.stem.startswith(f"{identity}-") for each in enrolled) >= MOST_KEYS_OF_A_TOKEN:
            raise TokenError(
                f"the token {identity} has let in {MOST_KEYS_OF_A_TOKEN} keys, and no more may "
                f"come by it: {_another(directory)}"
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
    """The id of the token with this key, and when it expires."""
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
            f"ask for another one: 'dist-net keys token DIR' makes it on the server's host"
        )


def ago(seconds: float) -> str:
    """A length of time, for people."""
    for unit_s, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _checked(enrolling: Enrol) -> bytes:
    """The key that is to be let in."""
    key = enrolling.public_key.encode()
    try:
        is_key = len(z85.decode(key)) == 32
    except Exception:
        is_key = False
    if enrolling.role not in (WORKER, CLIENT) or not is_key:
        raise TokenError(
            f"a token lets in a {WORKER} or {CLIENT} with a key of 40 characters, not a "
            f"{enrolling.role!r:.40} with {enrolling.public_key!r:.60}"
        )
    return key


def _another(directory: Path) -> str:
    command = shlex.join(("dist-net", "keys", "token", str(directory)))
    return f"{command!r} makes another one on the server's host"


def _names_of(directory: Path, identity: str) -> list[Path]:
    """The files of a token's own key, and of those that it has let in."""
    found = allow_list_of(directory, TOKEN).glob(f"{identity}.key")
    enrolled = (
        path
        for role in (WORKER, CLIENT)
        for path in allow_list_of(directory, role).glob(f"{identity}-*.key")
    )
    return [*found, *enrolled]


def revoke(directory: Path, name: str) -> list[str]:
    """Revoke the key or token of this name; with a token, every key that it has enrolled.

    A running server ends their connections within a second or two. Returns the deleted files, as
    ``workers/NAME``. Raises `KeyFileError` if there is no such name, and, once the rest is deleted,
    for each file that could not be deleted or read.
    """
    deleted: list[str] = []
    faults: list[object] = []
    known: set[str] = set()
    # The token first: `enrol` looks for it again after it has written a key.
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
