"""Tokens: one word by which another host finds a server, and is let in. Pure.

    dn1 followed by letters and digits, which stand in base 62 for:
    kind · id · expiry · server's public key and the token's secret one · addresses · checksum

A double click selects it, and no shell changes it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
import string
import struct
from dataclasses import dataclass, field

from dist_net.errors import TokenError

PREFIX = "dn"
VERSION = 1
MAX_ADDRESSES = 16
MAX_TOKEN = 4096

TRAINING, POOL = KINDS = "training", "pool"

_SERVERS = {TRAINING: "a parameter server", POOL: "a pool of inference workers"}
_COMMANDS = {TRAINING: "dist-net join", POOL: "dist-net inference-worker"}
# The first byte: never 0, which would be lost in base 62.
_CODES = {TRAINING: 1, POOL: 2}
_WITH_KEYS = 16

_ALPHABET = string.digits + string.ascii_letters
_ID_BYTES, _KEY_BYTES, _CHECKSUM_BYTES = 4, 32, 4
_EXPIRY = struct.Struct(">I")  # seconds since 1970
_PORT = struct.Struct(">H")
# The length of a host's name stands before it; these stand for numbers, which need none.
_IP_BYTES = {0: 4, 1: 16}
_TOKEN = re.compile(rf"{PREFIX}\d[0-9A-Za-z]{{20,}}")
_AGAIN = "copy the whole line again that 'dist-net train' or 'dist-net serve' printed"


@dataclass(frozen=True)
class JoinToken:
    """What a token says.

    ``kind`` is what the server does: one of KINDS. ``identity`` are 8 hexadecimal digits by which
    it is revoked; after ``expires_s``, in seconds since 1970, it lets nobody in any more. The
    server listens at one of ``addresses``, ``tcp://HOST:PORT``. Both keys are raw bytes; a server
    that listens on loopback alone may do without, and then they are empty.
    """

    kind: str
    identity: str
    expires_s: int
    addresses: tuple[str, ...]
    server_public: bytes = b""
    secret: bytes = field(default=b"", repr=False)

    @property
    def text(self) -> str:
        """The token as it is printed and pasted."""
        packed = bytes([_CODES[self.kind] + (_WITH_KEYS if self.secret else 0)])
        packed += bytes.fromhex(self.identity) + _EXPIRY.pack(self.expires_s)
        packed += self.server_public + self.secret + b"".join(map(_packed, self.addresses))
        return f"{PREFIX}{VERSION}{_to_letters(packed + _checksum(packed))}"

    @classmethod
    def of(cls, text: str) -> JoinToken:
        """Read a token; raises `TokenError` for one that is cut, damaged, or of another release."""
        found = re.fullmatch(rf"{PREFIX}(\d)([0-9A-Za-z]+)", text)
        if found is None or len(text) > MAX_TOKEN:
            strange = next((each for each in text if each not in _ALPHABET), "")
            cause = f", and holds {strange!r}" if strange else ""
            raise TokenError(
                f"{_shown(text)} is no token: it has {len(text)} characters{cause}; expected "
                f"'{PREFIX}{VERSION}' and letters and digits without a break: {_AGAIN}"
            )
        if int(found[1]) != VERSION:
            raise TokenError(
                f"{_shown(text)} is a token of version {found[1]}; this release reads version "
                f"{VERSION}: install the same release of dist_net on both hosts"
            )
        packed = _from_letters(found[2])
        content, checksum = packed[:-_CHECKSUM_BYTES], packed[-_CHECKSUM_BYTES:]
        if checksum != _checksum(content):
            raise TokenError(
                f"{_shown(text)} is cut or damaged: its {len(text)} characters do not fit its "
                f"checksum; {_AGAIN}"
            )
        try:
            return cls._unpacked(content)
        except (IndexError, KeyError, struct.error, ValueError) as error:
            raise TokenError(f"{_shown(text)} is not made as tokens are; {_AGAIN}") from error

    @classmethod
    def _unpacked(cls, content: bytes) -> JoinToken:
        rest = _Bytes(content)
        has_keys, code = divmod(rest.take(1)[0], _WITH_KEYS)
        kind = {of: kind for kind, of in _CODES.items()}[code]
        identity, (expires_s,) = rest.take(_ID_BYTES).hex(), _EXPIRY.unpack(rest.take(4))
        if has_keys > 1:
            raise ValueError(f"{has_keys} pairs of keys")
        keys = [rest.take(_KEY_BYTES) for _ in range(2 * has_keys)]
        addresses: list[str] = []
        while rest and len(addresses) <= MAX_ADDRESSES:
            addresses.append(_unpacked_address(rest))
        if not 0 < len(addresses) <= MAX_ADDRESSES:
            raise ValueError(f"{len(addresses)} addresses")
        return cls(kind, identity, expires_s, tuple(addresses), *keys)

    def require_kind(self, kind: str) -> None:
        """Raise `TokenError` if the server that it is of does something else."""
        if self.kind != kind:
            raise TokenError(
                f"this is a token of {_SERVERS[self.kind]}; expected one of {_SERVERS[kind]}: "
                f"paste the line as it was printed, echo TOKEN | {_COMMANDS[self.kind]}"
            )


def is_token(text: str) -> bool:
    """Whether a word is meant as a token, whole or not."""
    return _TOKEN.match(text) is not None


def holds_token(text: str) -> bool:
    """Whether a word of a command line is meant as a token, or as ``NAME=TOKEN``."""
    return any(is_token(part) for part in text.split("="))


class _Bytes:
    """Bytes that are taken from the front; raises IndexError where there are too few."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bool__(self) -> bool:
        return bool(self._content)

    def take(self, count: int) -> bytes:
        if len(self._content) < count:
            raise IndexError(count)
        taken, self._content = self._content[:count], self._content[count:]
        return taken


def _packed(address: str) -> bytes:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    host = host.strip("[]")
    try:
        number = ipaddress.ip_address(host).packed
    except ValueError:
        name = host.encode("idna")
        return bytes([len(name)]) + name + _PORT.pack(int(port))
    kind = next(kind for kind, size in _IP_BYTES.items() if size == len(number))
    return bytes([kind]) + number + _PORT.pack(int(port))


def _unpacked_address(rest: _Bytes) -> str:
    kind = rest.take(1)[0]
    if kind in _IP_BYTES:
        host = str(ipaddress.ip_address(rest.take(_IP_BYTES[kind])))
    else:
        host = rest.take(kind).decode("ascii")
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", host):
            raise ValueError(host)
    port = _PORT.unpack(rest.take(_PORT.size))[0]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + content).digest()[:_CHECKSUM_BYTES]


def _to_letters(content: bytes) -> str:
    number, letters = int.from_bytes(content), ""
    while number:
        number, place = divmod(number, len(_ALPHABET))
        letters = _ALPHABET[place] + letters
    return letters


def _from_letters(letters: str) -> bytes:
    number = 0
    for letter in letters:
        number = number * len(_ALPHABET) + _ALPHABET.index(letter)
    return number.to_bytes((number.bit_length() + 7) // 8)


def _shown(text: str) -> str:
    """A token as an error shows it: without its secret."""
    return repr(text if len(text) <= 12 else f"{text[:6]}...{text[-3:]}")
