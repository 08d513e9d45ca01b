"""Strategies that share nothing but their base, and a third one beside them."""

from collections.abc import Sequence

import pytest

from desk import Desk, a_run
from dist_net.training.server import leases
from dist_net.training.server.consistency import Consistency, OuterStep
from dist_net.training.server.journal_records import Applied
from dist_net.training.server.leases import Asynchronous
from dist_net.wire.messages import Stop, Work

ASYNC = Consistency.ASYNC


class Pairs(Asynchronous):
    """Applies two results at a time."""

    def outer_step(self, results: Sequence[Applied]) -> OuterStep | None:
        is_last = self.ledger.everything_is_leased and not self.ledger.awaits_results
        return super().outer_step(results) if len(results) == 2 or is_last else None


@pytest.mark.parametrize("parts", [1, 2])
def test_an_asynchronous_result_counts_as_one_of_its_workers(parts: int) -> None:
    desk = Desk(a_run(consistency=ASYNC, batch_size=16))
    for node in (b"a", b"b"):
        desk.join(node, parts=parts if node == b"a" else 3 - parts)
    work = desk.pull(b"a", 1)
    [record] = desk.run.accept(desk.run.members.members[0], desk.a_push(work), desk.now)
    assert isinstance(record, Applied)
    assert record.outer == OuterStep(parts / 3, 0.0, parts / 3)


def test_a_third_strategy_needs_no_change_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(leases.STRATEGIES, ASYNC, Pairs)
    desk = Desk(a_run(consistency=ASYNC, batch_size=16))
    works = {}
    for number, node in enumerate((b"a", b"b", b"c"), 1):
        desk.join(node)
        works[node] = desk.pull(node, number)
    together: list[int] = []
    while works:
        for node, work in list(works.items()):
            before = desk.run.store.version, desk.run.metrics.pushes_applied
            answer = desk.push(node, work)
            if desk.run.store.version > before[0]:
                together.append(desk.run.metrics.pushes_applied - before[1])
            works[node] = answer
            if isinstance(answer, Stop):
                del works[node]
            else:
                assert isinstance(answer, Work)
    assert set(together[:-1]) == {2}
    assert desk.run.ledger.finished
