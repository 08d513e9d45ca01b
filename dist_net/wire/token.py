"""Join tokens: one word that contains a server's addresses and a key that it admits. Pure.

    dn2 and then, in base 62: kind, id, expiry, the server's public key, the token's secret key,
    addresses, checksum

A double click selects a token, and no shell changes it.
"""

import hashlib
import re
import string
import struct
from dataclasses import dataclass, field
from typing import Self

from dist_net.errors import TokenError

PREFIX = "dn"
VERSION = 2
MAX_ADDRESSES = 16
MAX_TOKEN_LENGTH = 4096

TRAINING, POOL, STANDBY_OF_RUN = KINDS = "training", "pool", "standby"

_SERVERS = {
    TRAINING: "a parameter server",
    POOL: "a pool of inference workers",
    STANDBY_OF_RUN: "a parameter server, for a standby",
}
COMMANDS = {TRAINING: "join", POOL: "inference-worker", STANDBY_OF_RUN: "join"}
"""The command of dist-net that takes a token, by its kind."""

_ALPHABET = string.digits + string.ascii_letters
# The kind, from 1 since base 62 loses leading zeros; whether keys follow; id; seconds since 1970.
_HEAD = struct.Struct(">B?4sI")
_KEY_BYTES, _CHECKSUM_BYTES = 32, 4
ADDRESS = re.compile(r"(\[[0-9a-f:.]+\]|[A-Za-z0-9_.-]+):\d{1,5}")
_TOKEN = re.compile(rf"{PREFIX}\d[0-9A-Za-z]{{20,}}")
_AGAIN = "copy the whole line again that 'dist-net train' or 'dist-net serve' printed"


@dataclass(frozen=True)
class JoinToken:
    """The content of a token.

    ``kind`` is the kind of server, one of KINDS. ``identity``, 8 hexadecimal digits, revokes the
    token. After ``expires_s``, in seconds since 1970, the token admits no more hosts.
    ``addresses`` are ``tcp://HOST:PORT``. Both keys are raw bytes; they are empty for a server
    that listens on loopback only.
    """

    kind: str
    identity: str
    expires_s: int
    addresses: tuple[str, ...]
    server_public: bytes = b""
    secret: bytes = field(default=b"", repr=False)

    @property
    def text(self) -> str:
        """The token to print and paste."""
        head = 1 + KINDS.index(self.kind), self.secret != b"", bytes.fromhex(self.identity)
        where = " ".join(address.removeprefix("tcp://") for address in self.addresses)
        content = _HEAD.pack(*head, self.expires_s) + self.server_public + self.secret
        content += where.encode()
        return f"{PREFIX}{VERSION}{_to_base62(content + _checksum(content))}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a token; raise ``TokenError`` if it is incomplete, damaged or of another release."""
        found = re.fullmatch(rf"{PREFIX}(\d)([0-9A-Za-z]+)", text)
        if found is None or len(text) > MAX_TOKEN_LENGTH:
            strange = next((each for each in text if each not in _ALPHABET), "")
            cause = f", and contains {strange!r}" if strange else ""
            raise TokenError(
                f"{_redacted(text)} is no token: it has {len(text)} characters{cause}; expected "
                f"'{PREFIX}{VERSION}' and letters and digits without a break: {_AGAIN}"
            )
        if int(found[1]) != VERSION:
            raise TokenError(
                f"{_redacted(text)} is a token of version {found[1]}; this release reads version "
                f"{VERSION}: install the same release of dist_net on both hosts"
            )
        packed = _from_base62(found[2])
        content, checksum = packed[:-_CHECKSUM_BYTES], packed[-_CHECKSUM_BYTES:]
        if checksum != _checksum(content) or found[2][0] == _ALPHABET[0]:  # no number begins with 0
            raise TokenError(
                f"{_redacted(text)} is incomplete or damaged: its {len(text)} characters do not "
                f"match its checksum; {_AGAIN}"
            )
        try:
            return cls._from_content(content)
        except (IndexError, struct.error, ValueError) as error:
            raise TokenError(f"{_redacted(text)} has invalid content; {_AGAIN}") from error

    @classmethod
    def _from_content(cls, content: bytes) -> Self:
        code, has_keys, identity, expires_s = _HEAD.unpack_from(content)
        ends = [_HEAD.size + has_keys * count * _KEY_BYTES for count in range(3)]
        where = content[ends[2] :].decode("ascii").split(" ")
        if not 0 < code <= len(KINDS) or len(where) > MAX_ADDRESSES:
            raise ValueError(f"kind {code}, {len(where)} addresses")
        if not all(map(ADDRESS.fullmatch, where)):
            raise ValueError(where)
        keys = content[ends[0] : ends[1]], content[ends[1] : ends[2]]
        addresses = tuple(f"tcp://{each}" for each in where)
        return cls(KINDS[code - 1], identity.hex(), expires_s, addresses, *keys)

    def require_kind(self, *kinds: str) -> None:
        """Raise ``TokenError`` for a token of another kind of server."""
        if self.kind not in kinds:
            raise TokenError(
                f"this is a token of {_SERVERS[self.kind]}; expected one of {_SERVERS[kinds[0]]}: "
                f"paste the line as it was printed, echo TOKEN | dist-net "
                f"{COMMANDS[self.kind]}"
            )


def is_token(text: str) -> bool:
    return _TOKEN.match(text) is not None


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + content).digest()[:_CHECKSUM_BYTES]


def _to_base62(content: bytes) -> str:
    number, letters = int.from_bytes(content), ""
    while number:
        number, place = divmod(number, len(_ALPHABET))
        letters = _ALPHABET[place] + letters
    return letters


def _from_base62(letters: str) -> bytes:
    number = 0
    for letter in letters:
        number = number * len(_ALPHABET) + _ALPHABET.index(letter)
    return number.to_bytes((number.bit_length() + 7) // 8)


def _redacted(text: str) -> str:
    return repr(text if len(text) <= 12 else f"{text[:6]}...{text[-3:]}")
