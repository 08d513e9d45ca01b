"""When a process that has died is started again, and how often."""

import pytest

from dist_net.processes.restart_budget import HEALTHY_S, MAX_PAUSE_S, SETTLED_S, RestartBudget
from dist_net.training.run.local_run import with_port_of


def test_pauses_grow_up_to_a_limit_and_have_an_end() -> None:
    budget = RestartBudget(8)
    pauses_s = [budget.pause_s(lived_s=1.0) for _ in range(9)]
    assert pauses_s[:-1] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, *[MAX_PAUSE_S] * 3])
    assert pauses_s[-1] is None


def test_a_process_that_was_healthy_for_long_may_die_as_often_as_at_first() -> None:
    budget = RestartBudget(1)
    for _ in range(10):
        assert budget.pause_s(lived_s=HEALTHY_S) == 0.0
    assert budget.pause_s(lived_s=HEALTHY_S - 1) is None


def test_a_process_that_dies_long_after_its_start_is_started_again_at_once() -> None:
    budget = RestartBudget(8)
    lives_s = [1.0, 1.0, 1.0, SETTLED_S, 1.0]
    pauses_s = [budget.pause_s(lived_s) for lived_s in lives_s]
    assert pauses_s == pytest.approx([0.2, 0.4, 0.8, 0.0, 0.2])


def test_none_is_started_again_if_that_is_not_wanted() -> None:
    assert RestartBudget(0).pause_s(lived_s=HEALTHY_S) is None


@pytest.mark.parametrize(
    ("listen", "contact", "again"),
    [
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:40001", "tcp://127.0.0.1:40001"),
        ("tcp://0.0.0.0:0", "tcp://host:40001", "tcp://0.0.0.0:40001"),
        ("tcp://[::1]:0", "tcp://[::1]:40001", "tcp://[::1]:40001"),
        ("tcp://0.0.0.0:5550", "tcp://host:5550", "tcp://0.0.0.0:5550"),
        ("ipc:///run/server", "ipc:///run/server", "ipc:///run/server"),
    ],
)
def test_a_server_listens_again_where_workers_look_for_it(
    listen: str, contact: str, again: str
) -> None:
    assert with_port_of(listen, contact) == again
