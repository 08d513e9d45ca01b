"""Workers of different speeds, on a virtual clock: what a slow one costs."""

from collections.abc import Sequence

import numpy as np

from dist_net.parameter_server.run import RunState
from dist_net.parameter_server.settings import RunSettings
from dist_net.simulation.network import Link
from dist_net.simulation.timed_cluster import TimedCluster
from dist_net.training.state import Compute
from dist_net.vector import Vector
from dist_net.wire.messages import PIPELINE

SAMPLES, EPOCHS, STEP_S = 2_000, 2, 0.01
RUN_SETTINGS = RunSettings(
    recipe="counting",
    recipe_digest="abc",
    layout=(("applied", (EPOCHS, SAMPLES)),),
    samples=SAMPLES,
    epochs=EPOCHS,
    batch_size=4,
    learning_rate=1.0,
)


def counted(compute: Compute, _: Vector) -> tuple[float, int, Vector]:
    """-1 at each sample of the minibatch, so that the weights count how often each was applied."""
    gradient = np.zeros((EPOCHS, SAMPLES), np.float32)
    gradient[compute.epoch, compute.start : compute.stop] = -1
    return 1.0, 1, gradient.ravel()


def seconds_of_run(steps_s: list[float], links: Sequence[Link] = ()) -> float:
    run = RunState(RUN_SETTINGS, np.zeros(RUN_SETTINGS.vector_size, np.float32))
    seconds = TimedCluster(run, steps_s, counted, links).until_finished()
    assert run.ledger.applied_samples == RUN_SETTINGS.samples_total
    np.testing.assert_array_equal(run.store.weights, 1)
    return seconds


def test_a_worker_eight_times_slower_adds_its_speed_to_three_others() -> None:
    minibatches = RUN_SETTINGS.samples_total / RUN_SETTINGS.batch_size
    at_the_sum_of_speeds_s = minibatches * STEP_S / (3 + 1 / 8)
    assert seconds_of_run([8 * STEP_S, *[STEP_S] * 3]) < at_the_sum_of_speeds_s / 0.98


def test_a_worker_that_is_far_too_slow_costs_the_others_what_it_had_begun_at_most() -> None:
    alone_s = seconds_of_run([STEP_S] * 3)
    hindered_s = seconds_of_run([1000 * STEP_S, *[STEP_S] * 3])
    assert hindered_s < alone_s + PIPELINE.gradients * STEP_S


def test_a_worker_on_a_slow_link_does_not_stretch_the_run() -> None:
    alone_s = seconds_of_run([STEP_S])
    assert seconds_of_run([STEP_S] * 2, [Link(), Link(1.0)]) < alone_s + STEP_S
