"""The types of message fields, with the limits that the codec enforces for each. Pure data."""

from dataclasses import dataclass
from typing import Annotated

MAX_HEADER_BYTES = 2**21
MAX_PAYLOADS = 1024
MAX_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Limits:
    """The values that a field accepts.

    A number must be from ``low`` to ``high``; with ``low=None`` it may also be negative or not
    finite. A text or bytes may have ``max_length`` characters or bytes. ``one_line`` refuses
    control characters, for texts that are logged or printed. ``mended`` truncates a text and
    replaces its control characters when it is sent.
    """

    low: float | None = 0
    high: float | None = None
    max_length: int = 1024
    one_line: bool = False
    mended: bool = False


Name = Annotated[str, Limits(max_length=128, one_line=True)]
HostName = Annotated[str, Limits(max_length=255, one_line=True)]
Digest = Annotated[str, Limits(one_line=True)]
Reason = Annotated[str, Limits(max_length=4096, one_line=True, mended=True)]
StandbyList = Annotated[str, Limits(max_length=2048, one_line=True)]
Document = Annotated[str, Limits(max_length=MAX_HEADER_BYTES)]
Count = Annotated[int, Limits(high=65_536)]
"""A number that is only displayed; no machine has more cores than this."""

Payloads = tuple[bytes | memoryview, ...]
"""Frames of raw bytes. Received frames are borrowed from the socket and read-only."""
