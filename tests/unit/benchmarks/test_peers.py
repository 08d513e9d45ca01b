"""What other people's frameworks are measured by: the hand-written step, and the runner."""

import numpy as np
import pytest

from benchmarks.peers import peer_process, runner
from benchmarks.peers.hand_written import HandWrittenStep


@pytest.mark.parametrize("batch_size", [1, 32])
def test_the_hand_written_gradient_is_the_slope_of_the_loss(batch_size: int) -> None:
    step = HandWrittenStep(batch_size)
    step.gather()
    step.forward()
    step.backward()
    gradient, start = step.gradient.copy(), step.parameters.copy()
    # Along the gradient itself a small step stays clear of float32's noise.
    direction = gradient / np.linalg.norm(gradient)
    losses = []
    for distance in (-1e-2, 1e-2):
        step.parameters[:] = start + distance * direction
        step.forward()
        losses.append(step.loss)
    slope = (losses[1] - losses[0]) / 2e-2
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=1e-2)


def test_a_peer_that_is_not_installed_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_process, "find_spec", {"tensorflow": "there"}.get)
    result = runner.measure_peer("keras_fit")
    assert result.cases == ()
    assert result.unavailable == "keras not installed; pip install -e '.[peers]'"
