"""A standby's copy of a run: the bytes that the server sends, and the files made of them.

The journal travels as it is appended. A whole state, of one version, travels in parts beside it,
and is written once the journal has arrived up to that version: the files are then a run that can
be resumed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dist_net.checkpoint import MALFORMED, METADATA_FIELDS, Checkpoint, write_checkpoint
from dist_net.errors import ProtocolError
from dist_net.files import HOST_DISK, Disk
from dist_net.training.server.settings import RunSettings
from dist_net.training.server.state import RunState
from dist_net.training.server.state_versions import OUTER_MOMENTUM
from dist_net.wire.messages import Followed

PART_BYTES = 1 << 17
"""Of the journal, and of the state, in a message: one that took seconds would look like silence."""


class SentState:
    """A state on its way to a standby; its arrays never change. ``facts``: JSON, sent first."""

    def __init__(self, run: RunState, journal_bytes: int, more_facts: dict[str, Any]) -> None:
        checkpoint = run.checkpoint()
        self.version = checkpoint.version
        facts = {name: getattr(checkpoint, name) for name in METADATA_FIELDS}
        facts |= {"journal_bytes": journal_bytes, "samples": run.ledger.applied_samples}
        self.facts = json.dumps(facts | more_facts).encode()
        vectors = run.store.state, run.store.outer_momentum
        self._contents = [vector.data.cast("B") for vector in vectors]

    def part(self, start: int) -> memoryview:
        """Return the bytes of the next part, from ``start`` on."""
        first, second = self._contents
        content, at = (first, start) if start < len(first) else (second, start - len(first))
        return content[at : at + PART_BYTES]


class RunCopy:
    """The copy in the files ``checkpoint`` and ``journal``, up to ``version``.

    ``journal_bytes`` of ``term``'s journal and ``state_bytes`` of ``state_version`` have arrived.
    """

    def __init__(
        self, settings: RunSettings, checkpoint: Path, journal: Path, disk: Disk = HOST_DISK
    ) -> None:
        self._rule, self._layout = settings.start_rule(), settings.layout
        self._checkpoint = checkpoint
        self._journal = journal
        self._disk = disk
        self.term = 0
        self.version = 0
        self.samples = 0
        self.is_whole = disk.exists(checkpoint)
        """Whether a run can be resumed from it."""
        self._begin_journal()
        self._begin(0)

    @property
    def state_bytes(self) -> int:
        return len(self._state)

    def _begin_journal(self) -> None:
        """Collect another journal beside ``journal``, until a state has arrived."""
        self._collected = self._journal.with_name(f"{self._journal.name}.collected")
        self.journal_bytes = 0

    def _begin(self, version: int) -> None:
        """Forget the parts of a state."""
        self.state_version = version
        self._state = bytearray()
        self._facts: dict[str, Any] = {}

    def take_in(self, followed: Followed) -> dict[str, Any] | None:
        """Take in the server's answer; return the facts of a state once it is written.

        Ignore parts that do not continue the copy: messages may be repeated. Raise
        ``ProtocolError`` for parts that belong to no run of these settings, OSError, and
        ``FileWriteError``.
        """
        if followed.term != self.term:
            self.term = followed.term
            self._begin_journal()
            self._begin(0)
        if len(followed.parts) != 3:
            raise ProtocolError(f"a copy arrived in {len(followed.parts)} parts; expected 3")
        journal, facts, state = map(bytes, followed.parts)
        if journal and followed.journal_at == self.journal_bytes:
            self._append(journal)
        if followed.state_at == 0 and facts:
            self._begin(followed.state_version)
            self._facts = self._checked(facts)
        facts_of_state, at = self._facts, (followed.state_version, followed.state_at)
        whole_bytes = 4 * (self._rule.state_size + self._rule.trained_size)
        if facts_of_state and at == (self.state_version, self.state_bytes):
            self._state += state
        if self.state_bytes > whole_bytes:
            self._begin(0)
            raise ProtocolError(f"a state of more than {whole_bytes:,} bytes arrived")
        if not facts_of_state or self.state_bytes < whole_bytes:
            return None
        if self.journal_bytes < facts_of_state["journal_bytes"]:
            return None
        try:
            self._write()
        finally:
            self._begin(0)
        return facts_of_state

    def _checked(self, text: bytes) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = json.loads(text)
            for name, kind in METADATA_FIELDS.items() | {("journal_bytes", int), ("samples", int)}:
                if type(facts[name]) is not kind:
                    raise TypeError(name)
        except MALFORMED as error:
            raise ProtocolError(f"a state arrived with the facts {text[:80]!r}") from error
        return facts

    def _write(self) -> None:
        """Write the journal, then the checkpoint, which must never be ahead of it."""
        rule, facts = self._rule, self._facts
        vectors = np.frombuffer(self._state, "<f4")
        state, momentum = vectors[: rule.state_size], vectors[rule.state_size :]
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
        self.version, self.samples, self.is_whole = facts["version"], facts["samples"], True

    def _append(self, journal: bytes) -> None:
        """Write the bytes at once: a server may send them without end."""
        file = self._disk.append_to(self._collected, self.journal_bytes)
        try:
            if file.write(journal) < len(journal):
                raise OSError(f"too little space for {self._collected}")
        finally:
            file.close()
        self.journal_bytes += len(journal)
