"""The local steps of a lease, as they travel, are journaled and are taken; pure data."""

from itertools import pairwise
from typing import Annotated, NamedTuple

from dist_net.wire.fields import Limits

FEWEST_SAMPLES = 2  # of a minibatch and of its parts: batch normalisation needs a variance
MAX_PARTS = 32
"""The largest number of parts of a lease: a journal's record has five bits for it."""

Parts = Annotated[int, Limits(low=1, high=MAX_PARTS)]


def minibatches_in(samples: int, batch_size: int) -> int:
    """Return the number of minibatches; the last may be smaller, a single sample joins another."""
    return max(1, (samples + batch_size - min(batch_size, FEWEST_SAMPLES)) // batch_size)


class LeaseSteps(NamedTuple):
    """The local steps of a lease, on samples ``start`` to ``stop`` of the order of ``epoch``.

    Minibatches have ``batch_size`` samples (see ``minibatches_in``). The first step has the
    learning rate after ``progress`` samples of the run, each further step that after ``pace``
    samples more: all workers advance at the same time. All ``parts`` begin from the same state.
    """

    epoch: int
    start: int
    stop: int
    progress: int
    pace: int
    batch_size: Annotated[int, Limits(low=1)]
    parts: Parts = 1

    def first(self, minibatches: int) -> "LeaseSteps":
        """Return the first ``minibatches``, or all, in at most as many parts."""
        count = minibatches_in(self.samples, self.batch_size)
        stop = self.stop if minibatches >= count else self.start + minibatches * self.batch_size
        return self._replace(stop=stop, parts=min(self.parts, minibatches, count))

    @property
    def samples(self) -> int:
        return self.stop - self.start

    @property
    def edges(self) -> list[int]:
        """The first samples of all minibatches, and ``stop``."""
        minibatches = minibatches_in(self.samples, self.batch_size)
        return [*(self.start + n * self.batch_size for n in range(minibatches)), self.stop]

    def split(self) -> list["LeaseSteps"]:
        """Return the parts, of whole minibatches, as equal as possible; each has at least one."""
        edges = self.edges
        places = [part * (len(edges) - 1) // self.parts for part in range(self.parts + 1)]
        ends = pairwise(edges[place] for place in places)
        return [self._replace(start=start, stop=stop, parts=1) for start, stop in ends]
