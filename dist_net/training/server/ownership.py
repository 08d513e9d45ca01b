"""The owner of a run directory: the server that was started last, on any host. One small file.

Each start of a server begins a *term*; terms only grow. On a network file system, a disconnected
host loses its locks without noticing. So each server writes its claim to a file, and reads it again
before it writes to the run directory, but at most ten times a second.
"""

import logging
import os
from pathlib import Path
from random import Random, SystemRandom

from dist_net.errors import SupersededError
from dist_net.ground.files import HOST_DISK, Disk, replacing
from dist_net.training.server.standbys import NOTHING, Remembered
from dist_net.wire.standbys import RANDOM_BITS, STARTS_BITS

logger = logging.getLogger(__name__)

NOTICED_WITHIN_S = 0.5
"""A running server reads the claim several times a second, and so notices a newer one."""

RANDOM = SystemRandom()


def next_term(term: int, random: Random = RANDOM, *, takes_over: bool = False) -> int:
    """Return a term after ``term`` that no other server draws.

    A takeover outweighs any number of starts in place, which a cut-off server may repeat.
    """
    starts = (term >> RANDOM_BITS) + (1 << STARTS_BITS if takes_over else 1)
    return starts << RANDOM_BITS | random.getrandbits(RANDOM_BITS)


class RunOwnership:
    """Claim a run directory for a server on ``host``, in the file ``path``, with a new ``term``.

    The term follows the term of the last claim and, in a takeover, ``after``. If the run
    ``was_elsewhere``, wait ``NOTICED_WITHIN_S`` before reading the directory: another server may
    run. If the claim cannot be written, log a warning and check nothing.
    """

    def __init__(
        self, path: Path, host: str, disk: Disk = HOST_DISK, after: int = 0, random: Random = RANDOM
    ) -> None:
        self._path = path
        self._disk = disk
        former = _claim_in(path, disk)
        self.term = next_term(max(after, _term_in(former)), random, takes_over=after > 0)
        self._own = f"{self.term:016x} process {os.getpid()} on {host}"
        try:
            with replacing(path, disk) as partial:  # no later start may draw an earlier term
                disk.write(partial, self._own.encode())
        except OSError as error:
            logger.warning("run_not_claimed path=%s error=%s", path, error)
            self._own = former
        self.was_elsewhere = former != "" and not former.endswith(f" on {host}")

    def require(self) -> None:
        """Raise ``SupersededError`` if another server has claimed the run directory since."""
        last = _claim_in(self._path, self._disk)
        if last not in ("", self._own):
            raise SupersededError(
                f"another parameter server has taken over {self._path.parent} "
                f"({last.partition(' ')[2]}), so this one ends. To continue here instead, stop "
                f"the other server, then resume the run"
            )


def last_term(path: Path) -> int:
    """Return the term of the last claim in the file ``path``; 0 without a claim."""
    return _term_in(_claim_in(path))


def remembered_in(path: Path) -> Remembered:
    """Return the other hosts and the standbys of a run, from the file ``path``, if it exists."""
    return Remembered.from_json(path.read_bytes()) if path.exists() else NOTHING


def _claim_in(path: Path, disk: Disk = HOST_DISK) -> str:
    """Return the last claim; "" if it does not exist or is unreadable."""
    try:
        return disk.read(path, 0, 1000).decode(errors="replace")
    except OSError:
        return ""


def _term_in(claim: str) -> int:
    """Return the term of a claim; 0 if it has none."""
    try:
        return int(claim.partition(" ")[0], 16) & (2**63 - 1)
    except ValueError:
        return 0
