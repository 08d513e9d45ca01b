"""The server's side of the copies of a run: its answers to standbys."""

import json
import math
from collections.abc import Callable
from typing import Any

from dist_net.training.server.copy_pace import BUSY_SHARE, MAX_PART_BYTES
from dist_net.training.server.protocol import ParameterServer
from dist_net.training.server.server_files import OpenServerFiles
from dist_net.training.server.standby_copy import SentState
from dist_net.wire.messages import Follow, Followed

MoreFacts = Callable[[bool], dict[str, Any]]
"""Return what a standby must know besides the state, as JSON; True: this is its first state."""


class CopyDesk:
    """Answer standbys with parts of a state, or of the journal."""

    def __init__(
        self, server: ParameterServer, files: OpenServerFiles, more_facts: MoreFacts
    ) -> None:
        self._server = server
        self._files = files
        self._more_facts = more_facts

    def answer(self, follow: Follow, now: float, *, is_link_busy: bool) -> Followed:
        """Return a part of a state if the standby requests one, else of the journal."""
        server, files = self._server, self._files
        run, standbys = server.run, server.standbys
        start, size = follow.state_bytes, min(follow.part_bytes, MAX_PART_BYTES)
        journal_at, version, journal, facts, part = 0, 0, b"", b"", memoryview(b"")
        follower = standbys.follower(follow)
        copy = follower.copy
        # A standby receives a vote first, unless the votes cannot change at present, or matter.
        has_vote = server.stop_reason is not None or math.isfinite(follower.promise.since_s)
        if not size:
            journal_at = follow.journal_bytes if follow.term == server.term else 0
            journal = files.disk.read(files.paths.journal, journal_at, MAX_PART_BYTES)
        elif not start and has_vote and files.journal.error is None:
            more_facts = self._more_facts(copy.version is None)
            state = SentState(run, files.disk.size(files.paths.journal), more_facts)
            facts = state.facts
            if state.version != copy.version:
                copy.sends(state, now)
                part = state.part(0, size)
            version = state.version
        elif copy.sent is not None and self._continues(copy.sent, follow):
            part, version = copy.sent.part(start, size), follow.state_version
        others = json.dumps(standbys.remembered, ensure_ascii=False)
        known = server.term, follow.sent_s, run.store.version, standbys.host, others, standbys.text
        share = BUSY_SHARE if is_link_busy else 1.0
        return Followed(*known, journal_at, version, start, share, (journal, facts, part))

    def _continues(self, state: SentState, follow: Follow) -> bool:
        """Return whether this is the state requested, and no newer one is the run's last."""
        server = self._server
        is_last = state.version == server.run.store.version or server.stop_reason is None
        return is_last and state.version == follow.state_version
