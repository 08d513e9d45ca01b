"""The file of the tokens that HTTP clients must send, each with its role."""

from __future__ import annotations

import hmac
import logging
import shlex
import time
from pathlib import Path

from dist_net.errors import KeyFileError
from dist_net.wire.security import CLIENT, OPERATOR

logger = logging.getLogger(__name__)

MIN_TOKEN = 16
_MAX_BYTES = 64 * 1024
_READ_EVERY_S = 1.0


class TokenFile:
    """Tokens, one a line: ``client TOKEN``, ``operator TOKEN``, or a TOKEN alone, an operator's.

    The constructor raises KeyFileError for an unusable line. The file is read again every second of
    use, so tokens are added and revoked without a restart: only its usable lines count, and if it
    is missing, no token is valid. A read that fails otherwise, as without a free descriptor,
    changes nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problem = ""
        self._roles: dict[bytes, str] = {}
        self._read_s = time.monotonic()
        try:
            problem = self._read()
        except OSError as error:
            problem = f"cannot read tokens from {path}: {error}; expected a token on each line"
        if problem:
            raise KeyFileError(problem)

    def role_of(self, authorization: bytes) -> str | None:
        """Return the role of the token in an Authorization header; None if it is not valid."""
        self._refresh()
        scheme, _, token = authorization.partition(b" ")
        token = token.strip()
        # Compare with every token, in constant time, so that the time reveals nothing about them.
        roles = {role for each, role in self._roles.items() if hmac.compare_digest(each, token)}
        return next(iter(roles), None) if scheme.lower() == b"bearer" else None

    def _refresh(self) -> None:
        """Read the file again, at most once a second; a pipe can be read only once."""
        now = time.monotonic()
        if now < self._read_s + _READ_EVERY_S:
            return
        self._read_s = now
        try:
            if self._path.exists() and not self._path.is_file():
                return
            problem = self._read()
        except FileNotFoundError:
            self._roles, problem = {}, f"{self._path} is missing: no token is valid"
        except OSError as error:
            problem = f"cannot read {self._path}: {error}; the previous tokens stay valid"
        if problem and problem != self._problem:
            logger.warning("tokens_not_valid error=%s", problem)
        self._problem = problem

    def _read(self) -> str:
        """Read the tokens from the file. Return the problem with it, or ""."""
        with self._path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content[:_MAX_BYTES].decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        self._roles, unusable = {}, []
        for number, line in enumerate(lines, 1):
            role, _, token = line.partition(" ")
            if role not in (CLIENT, OPERATOR):
                role, token = OPERATOR, line
            token = token.strip()
            if token.isascii() and token.isprintable() and len(token) >= MIN_TOKEN:
                self._roles[token.encode()] = role
            else:
                unusable.append(f"token {number} in {self._path} has {len(token)} characters")
        if len(content) > _MAX_BYTES or not lines:
            return (
                f"the token file {self._path} holds {len(lines)} tokens in {len(content)} bytes; "
                f"expected 1 to {_MAX_BYTES:,} bytes; `python3 -c 'import secrets; "
                f"print(secrets.token_urlsafe())' >>{shlex.quote(str(self._path))}` adds a token"
            )
        if unusable:
            return (
                f"{'; '.join(unusable[:3])}; expected at least {MIN_TOKEN} printable ASCII "
                f"characters, after 'client ' or 'operator '"
            )
        return ""
