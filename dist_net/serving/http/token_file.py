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

    The file is read again every second of use, so tokens come and go without a restart. While it is
    unreadable or invalid, the tokens read before stay valid. The constructor raises KeyFileError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._problem = ""
        self._roles = self._read()
        self._read_s = time.monotonic()

    def role_of(self, authorization: bytes) -> str | None:
        """Return the role of the token in an Authorization header; None if it is not valid."""
        self._refresh()
        scheme, _, token = authorization.partition(b" ")
        token = token.strip()
        # Each is compared, and in constant time, so that the time tells nothing about them.
        roles = {role for each, role in self._roles.items() if hmac.compare_digest(each, token)}
        return next(iter(roles), None) if scheme.lower() == b"bearer" else None

    def _refresh(self) -> None:
        """Read the file again, at most once a second; a pipe can be read only once."""
        now = time.monotonic()
        if now < self._read_s + _READ_EVERY_S:
            return
        self._read_s = now
        try:
            if self._path.is_file() or not self._path.exists():
                self._roles, self._problem = self._read(), ""
        except (KeyFileError, OSError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                logger.warning("event=tokens_not_read_again error=%s", error)

    def _read(self) -> dict[bytes, str]:
        """Return the role of each token; raise KeyFileError."""
        try:
            with self._path.open("rb") as file:
                text = file.read(_MAX_BYTES + 1).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(
                f"cannot read tokens from {self._path}: {error}; expected a line of text for each"
            ) from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines or len(text) > _MAX_BYTES:
            raise KeyFileError(
                f"the token file {self._path} holds {len(lines)} tokens in {len(text)} characters; "
                f"expected 1 to {_MAX_BYTES:,} characters; `python3 -c 'import secrets; "
                f"print(secrets.token_urlsafe())' >>{shlex.quote(str(self._path))}` adds a token"
            )
        return dict(self._token_and_role(number, line) for number, line in enumerate(lines, 1))

    def _token_and_role(self, number: int, line: str) -> tuple[bytes, str]:
        """Raise KeyFileError for a token that no header can carry or that is easy to guess."""
        role, _, token = line.partition(" ")
        if role not in (CLIENT, OPERATOR):
            role, token = OPERATOR, line
        token = token.strip()
        if not (token.isascii() and token.isprintable() and len(token) >= MIN_TOKEN):
            raise KeyFileError(
                f"token {number} in {self._path} has {len(token)} characters; expected at least "
                f"{MIN_TOKEN} printable ASCII characters, after 'client ' or 'operator '"
            )
        return token.encode(), role
