"""Invitations: a server's join tokens, and the keys enrolled with them.

A token's key permits a single request: to enroll a key that the host has just created. A token in a
shell's history is therefore useless once it has expired, and hosts enrolled with it stay connected.
In a cluster's key directory::

    tokens/ID.key               the token's key and its expiry
    workers/ID-HOST-NUMBER.key  keys enrolled with it; see ``dist_net.wire.security``
    clients/ID-HOST-NUMBER.key
    addresses.json              the addresses of the server
"""

import hashlib
import json
import logging
import re
import secrets
import shlex
import time
from contextlib import suppress
from pathlib import Path

import zmq
from zmq.utils import z85

from dist_net.errors import KeyFileError, TokenError
from dist_net.wire.messages import Enroll, Enrolled, Refuse
from dist_net.wire.security import (
    CLIENT,
    ROLES,
    STANDBY,
    TOKEN,
    WORKER,
    PeerKeys,
    allow_list_of,
    allowed_keys,
    key_files,
    make_keys,
    read_key_files,
    read_public_key,
    write_key,
)
from dist_net.wire.token import STANDBY_OF_RUN, JoinToken

logger = logging.getLogger(__name__)

TOKEN_LIFETIME_S = 86_400.0
MAX_LIFETIME_S = 10 * 365 * 86_400.0
MAX_KEYS_PER_TOKEN = 256
KEPT_AFTER_EXPIRY_S = 7 * 86_400.0
"""After this time an expired token is deleted, and refused as unknown."""
_ADDRESSES = "addresses.json"
_IDENTITY = re.compile("[0-9a-f]{8}")
_EXPIRES = re.compile(r'^\s*expires\s*=\s*"(\d+)"', re.MULTILINE)
_KIND = re.compile(r'^\s*kind\s*=\s*"(\w+)"', re.MULTILINE)


def invite(
    directory: Path,
    kind: str,
    addresses: tuple[str, ...],
    lifetime_s: float = TOKEN_LIFETIME_S,
    now_s: float | None = None,
) -> JoinToken:
    """Return a new token of the server with these addresses, and store them for ``invite_again``.

    The keys of ``directory`` are created if it is missing. Raise ``TokenError`` for a lifetime out
    of range, and ``KeyFileError``.
    """
    require_lifetime(lifetime_s)
    make_keys(directory)
    now_s = time.time() if now_s is None else now_s
    _delete_expired(directory, now_s)
    identity, keys = secrets.token_hex(4), PeerKeys.new(read_public_key(directory / "server.key"))
    expires_s = int(now_s + lifetime_s)
    path = allow_list_of(directory, TOKEN) / f"{identity}.key"
    write_key(path, keys.public, expires=expires_s, kind=kind)
    try:
        if kind != STANDBY_OF_RUN:
            text = json.dumps({"kind": kind, "addresses": addresses})
            (directory / _ADDRESSES).write_text(text, encoding="utf-8")
    except OSError as error:
        raise KeyFileError(f"cannot write {directory / _ADDRESSES} ({error.strerror})") from error
    public, secret = map(z85.decode, (keys.server_public, keys.secret))
    return JoinToken(kind, identity, expires_s, addresses, public, secret)


def require_lifetime(lifetime_s: float) -> None:
    """Raise ``TokenError`` for a lifetime out of range."""
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise TokenError(
            f"the token's lifetime is {lifetime_s:g} s; expected above 0, and at most "
            f"{MAX_LIFETIME_S:g} (ten years)"
        )


def invite_again(
    directory: Path, lifetime_s: float = TOKEN_LIFETIME_S, *, standby: bool = False
) -> JoinToken:
    """Return a token for the last server of these keys, or a ``standby``. Raise as ``invite``."""
    path = directory / _ADDRESSES
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kind, addresses = str(stored["kind"]), tuple(map(str, stored["addresses"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise KeyFileError(
            f"cannot read {path} ({error}); expected the keys of a server that was started "
            f"with --listen tcp://HOST:PORT, or the directory of a run that this host serves"
        ) from error
    return invite(directory, STANDBY_OF_RUN if standby else kind, addresses, lifetime_s)


def peer_keys_of(token: JoinToken) -> PeerKeys:
    secret = z85.encode(token.secret)
    return PeerKeys(z85.encode(token.server_public), zmq.curve_public(secret), secret)


def enroll(directory: Path, token_key: bytes, request: Enroll, now_s: float) -> Enrolled | Refuse:
    """Admit a key if the token with ``token_key`` (Z85) has not expired; return the reply."""
    try:
        identity, expires_s, kind = _token_of(directory, token_key)
        if now_s > expires_s:
            raise TokenError(
                f"the token {identity} expired {duration_text(now_s - expires_s)} ago, by the "
                f"server's clock: {_another(directory)}"
            )
        key = _checked_key(request, kind)
        host = re.sub(r"[^A-Za-z0-9]+", "-", request.name).strip("-")[:40]
        number = hashlib.sha256(key).hexdigest()[:8]
        name = "-".join(filter(None, (identity, host, number)))
        allow_list = allow_list_of(directory, request.role)
        if (allow_list / f"{name}.key").exists():  # a repeated request
            return Enrolled()
        roles = WORKER, CLIENT, STANDBY
        enrolled = [each for role in roles for each in key_files(directory, role)]
        if sum(each.stem.startswith(f"{identity}-") for each in enrolled) >= MAX_KEYS_PER_TOKEN:
            raise TokenError(
                f"the token {identity} has enrolled {MAX_KEYS_PER_TOKEN} keys, the "
                f"maximum: {_another(directory)}"
            )
        write_key(allow_list / f"{name}.key", key)
        try:
            _token_of(directory, token_key)  # raises if it was revoked meanwhile
        except (KeyFileError, TokenError):
            (allow_list / f"{name}.key").unlink(missing_ok=True)
            raise
    except (KeyFileError, TokenError) as error:
        logger.warning("enroll_refused name=%s reason=%s", request.name, error)
        return Refuse(str(error), may_rejoin=False)
    logger.info("enrolled token=%s key=%s role=%s", identity, name, request.role)
    return Enrolled()


def _token_of(directory: Path, token_key: bytes) -> tuple[str, int, str]:
    """Return the id, the expiry and the kind of the token with this key."""
    keys, faults = read_key_files(directory, TOKEN)
    for path, key in keys.items():
        if key == token_key:
            return path.stem, int(_fact_of(path, _EXPIRES, "0")), _fact_of(path, _KIND, "")
    if faults:
        raise faults[0]
    raise TokenError(f"this token was revoked: {_another(directory)}")


def _fact_of(path: Path, pattern: re.Pattern[str], default: str) -> str:
    try:
        found = pattern.search(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KeyFileError(f"cannot read {path} ({error}); it may have been revoked") from error
    return found[1] if found else default


def _delete_expired(directory: Path, now_s: float) -> None:
    """Delete tokens that expired long ago; every start of a server creates one."""
    for path in allow_list_of(directory, TOKEN).glob("*.key"):
        with suppress(KeyFileError):  # another process has deleted it
            if now_s > int(_fact_of(path, _EXPIRES, "0")) + KEPT_AFTER_EXPIRY_S:
                path.unlink(missing_ok=True)


def duration_text(seconds: float) -> str:
    """Return a duration in its largest unit, such as ``3 hours``."""
    for unit_s, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _checked_key(request: Enroll, kind: str) -> bytes:
    """Return the key to enroll with a token of this kind; raise ``TokenError``."""
    key = request.public_key.encode()
    try:
        is_key = len(z85.decode(key)) == 32
    except Exception:
        is_key = False
    roles = (STANDBY,) if kind == STANDBY_OF_RUN else (WORKER, CLIENT)
    if request.role not in roles or not is_key:
        raise TokenError(
            f"cannot enroll a {request.role!r:.40} with the key {request.public_key!r:.60}; "
            f"expected a {' or '.join(roles)} with a key of 40 characters"
        )
    return key


def _another(directory: Path) -> str:
    command = shlex.join(("dist-net", "keys", "token", str(directory)))
    return f"{command!r} on the server's host creates another token"


def revoke(directory: Path, name: str) -> list[str]:
    """Revoke a key, or a token and every key enrolled with it; return the deleted ``workers/NAME``.

    A running server ends their connections within two seconds. Raise ``KeyFileError`` if the name
    is unknown, and, after deleting the rest, for each file that cannot be deleted or read.
    """
    deleted: list[str] = []
    faults: list[object] = []
    known: set[str] = set()
    # Delete the token first: ``enroll`` checks for it again after writing a key.
    for role in (TOKEN, *ROLES, STANDBY):
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
            f"Repair or delete each of these files, then revoke {name} again"
        )
    if not deleted:
        raise KeyFileError(
            f"no token or key {name!r} in {directory}; expected a token id or a key name: "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return sorted(deleted)
