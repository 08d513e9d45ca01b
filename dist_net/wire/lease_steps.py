"""The local steps of a lease, as they travel, are journaled and are taken; pure data."""

from itertools import pairwise
from typing import Annotated, NamedTuple

from dist_net.wire.fields import Limits

MAX_PARTS = 32
"""The largest number of parts of a lease: a journal's record has five bits for it."""

Parts = Annotated[int, Limits(low=1, high=MAX_PARTS)]


class LeaseSteps(NamedTuple):
    """The local steps of a lease, on samples ``start`` to ``stop`` of the order of ``epoch``.

    Minibatches have ``batch_size`` samples. The first step has the learning rate after ``progress``
    samples of the run, each further step that after ``pace`` samples more: all workers advance at
    the same time. The ``parts`` of the lease begin from the same state.
    """

    epoch: int
    start: int
    stop: int
    progress: int
    pace: int
    batch_size: Annotated[int, Limits(low=1)]
    parts: Parts = 1

    @property
    def samples(self) -> int:
        return self.stop - self.start

    def split(self) -> list["LeaseSteps"]:
        """Return the parts, of whole minibatches and as equal as possible, in the samples' order.

        A lease has at least as many minibatches as parts.
        """
        minibatches = -(-(self.stop - self.start) // self.batch_size)
        ends = [
            min(self.start + part * minibatches // self.parts * self.batch_size, self.stop)
            for part in range(self.parts + 1)
        ]
        return [self._replace(start=start, stop=stop, parts=1) for start, stop in pairwise(ends)]
