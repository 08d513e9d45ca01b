"""A standby's copy of a run: the bytes that the server sends, and the files made of them.

The journal travels as it is appended. A whole state, of one version, travels in parts beside it,
and is written once the journal has arrived up to that version: the files are then a run that can
be resumed.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ProtocolError
from dist_net.ground.checkpoint import MALFORMED, METADATA_FIELDS, Checkpoint, write_checkpoint
from dist_net.ground.files import HOST_DISK, Disk
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import OUTER_MOMENTUM, RunState
from dist_net.wire.messages import Followed

FACTS = METADATA_FIELDS | {"journal_bytes": int, "samples": int, "state_bytes": int}
"""The facts that a standby needs about a state, and their types."""


class SentState:
    """A state on its way to a standby; its arrays never change. ``facts``: JSON, sent first."""

    def __init__(self, run: RunState, journal_bytes: int, more_facts: dict[str, Any]) -> None:
        checkpoint, momentum = run.checkpoint(), run.store.outer_momentum
        self.version = checkpoint.version
        vectors = [run.store.state, *([momentum] if run.store.has_momentum else [])]
        self._contents = [vector.data.cast("B") for vector in vectors]
        self.size = sum(map(len, self._contents))
        facts = {name: getattr(checkpoint, name) for name in METADATA_FIELDS}
        facts |= {"journal_bytes": journal_bytes, "samples": run.ledger.applied_samples}
        self.facts = json.dumps(facts | {"state_bytes": self.size} | more_facts).encode()

    def part(self, start: int, size: int) -> memoryview:
        """Return at most ``size`` bytes from ``start`` on."""
        first, *rest = self._contents
        if start < len(first) or not rest:
            return first[start : start + size]
        return rest[0][start - len(first) :][:size]


class RunCopy:
    """The copy in the files ``checkpoint`` and ``journal``: ``version``, as in ``copied_term``.

    ``journal_bytes`` of the journal of ``term`` have arrived, and ``state_bytes`` of
    ``state_version``; ``left_bytes`` of it are missing. A state that ``is_complete`` may be written
    by another thread.
    """

    def __init__(
        self, settings: RunSettings, checkpoint: Path, journal: Path, disk: Disk = HOST_DISK
    ) -> None:
        self._rule, self._layout = settings.start_rule(), settings.layout
        self._samples_total = settings.samples_total
        self.takeover_after_s = settings.takeover_after_s
        self._checkpoint = checkpoint
        self._journal = journal
        self._disk = disk
        self.term = self.copied_term = self.version = self.samples = 0
        self.arrived = 0, 0
        """The last version that has arrived, and its term; it may still be written."""
        self.is_whole = disk.exists(checkpoint)
        """Whether a run can be resumed from it."""
        self._is_writing = False
        self._begin_journal()
        self.forget()

    @property
    def is_finished(self) -> bool:
        return self.samples == self._samples_total

    def _begin_journal(self) -> None:
        """Collect another journal in a file beside ``journal``, until a state has arrived."""
        self._collected = self._journal.with_name(f"{self._journal.name}.collected")
        self.journal_bytes = 0

    def forget(self) -> None:
        """Drop the parts of a state."""
        self.state_version = self.state_bytes = 0
        self._facts: dict[str, Any] = {}
        self._state = np.empty(0, np.uint8)

    @property
    def left_bytes(self) -> int:
        return self._state.nbytes - self.state_bytes

    @property
    def has_begun(self) -> bool:
        return bool(self._facts)

    @property
    def is_complete(self) -> bool:
        has_state = self.has_begun and not self.left_bytes and not self._is_writing
        return has_state and self.journal_bytes >= self._facts["journal_bytes"]

    def take_in(self, followed: Followed) -> bool:
        """Take in the server's answer; return whether it continues the state.

        Messages may be repeated. Raise ``ProtocolError`` for parts of another run, and OSError.
        """
        if len(followed.parts) != 3:
            raise ProtocolError(f"a copy arrived in {len(followed.parts)} parts; expected 3")
        if followed.term != self.term:
            if self._is_writing:
                return False
            self.term = followed.term
            self._begin_journal()
            self.forget()
        journal, facts, part = followed.parts
        if journal and followed.journal_at == self.journal_bytes and not self._is_writing:
            self._append(bytes(journal))
        if facts and not self.has_begun:
            self._begin(followed.state_version, bytes(facts))
        at = followed.state_version, followed.state_at
        is_next = at == (self.state_version, self.state_bytes)
        if not (facts or part) or not self.has_begun or not is_next:
            return False
        if len(part) > self.left_bytes:
            raise ProtocolError(f"a state of more than {self._state.nbytes:,} bytes arrived")
        end = self.state_bytes + len(part)
        self._state[self.state_bytes : end] = np.frombuffer(part, np.uint8)
        self.state_bytes = end
        return True

    def _begin(self, version: int, text: bytes) -> None:
        """Begin a state with its facts, which arrive alone if the copy has this version."""
        sizes = 4 * self._rule.state_size, 4 * (self._rule.state_size + self._rule.trained_size)
        try:
            facts: dict[str, Any] = json.loads(text)
            for name, kind in FACTS.items():
                if type(facts[name]) is not kind:
                    raise TypeError(name)
            if facts["state_bytes"] not in sizes:
                raise ValueError(facts["state_bytes"])
        except MALFORMED as error:
            raise ProtocolError(f"a state arrived with the facts {text[:80]!r}") from error
        is_new = (self.term, version) != (self.copied_term, self.version)
        self.state_version, self.state_bytes, self._facts = version, 0, facts
        self._state = np.empty(facts["state_bytes"] if is_new else 0, np.uint8)

    def to_write(self) -> Callable[[], dict[str, Any]]:
        """Return a function that writes the complete state and returns its facts.

        It raises OSError and ``FileWriteError``. Call ``written`` afterwards.
        """
        self._is_writing, self.arrived = True, (self.state_version, self.term)
        write = partial(self._write, self._facts, self._state)
        self._facts, self._state = {}, np.empty(0, np.uint8)
        return write

    def _write(self, facts: dict[str, Any], content: NDArray[np.uint8]) -> dict[str, Any]:
        """Write the journal, then the checkpoint, which must never be ahead of it."""
        if not content.size:
            return facts
        rule, vectors = self._rule, content.view("<f4")
        state, momentum = vectors[: rule.state_size], vectors[rule.state_size :]
        if not momentum.size:
            momentum = np.zeros(rule.trained_size, "<f4")
        self._disk.sync(self._collected)
        if self._collected != self._journal:
            self._disk.rename(self._collected, self._journal)
            self._collected = self._journal
            self._disk.sync(self._journal.parent)
        known = {name: facts[name] for name in METADATA_FIELDS} | {"layout": self._layout}
        parts = rule.parts(state) | {OUTER_MOMENTUM: momentum}
        weights = state[: rule.size]
        checkpoint = Checkpoint(**known, weights=weights, optimizer_state=parts)
        write_checkpoint(self._checkpoint, checkpoint, self._disk)
        return facts

    def written(self, facts: dict[str, Any] | None) -> None:
        """Record that a state with these facts was written; None: it was not."""
        self._is_writing = False
        if facts is not None:
            self.copied_term, self.is_whole = self.term, True
            self.version, self.samples = facts["version"], facts["samples"]
        self.arrived = self.version, self.copied_term

    def _append(self, journal: bytes) -> None:
        """Write the bytes at once: a server may send them without end."""
        file = self._disk.append_to(self._collected, self.journal_bytes)
        try:
            if file.write(journal) < len(journal):
                raise OSError(f"too little space for {self._collected}")
        finally:
            file.close()
        self.journal_bytes += len(journal)
