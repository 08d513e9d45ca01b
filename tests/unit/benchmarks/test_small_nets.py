"""What ``scripts/bench small-nets`` measures: equal outputs, and its table."""

import numpy as np
import pytest

from benchmarks import small_nets
from benchmarks.peers.small_net_outputs import NETS, outputs_of


@pytest.mark.parametrize("name", NETS)
def test_all_engines_have_the_same_outputs(name: str) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    expected = outputs_of(name, small_nets.PEER, 3, 1)()
    for engine in small_nets.OURS:
        np.testing.assert_allclose(outputs_of(name, engine, 3, 1)(), expected, rtol=0, atol=1e-5)


def test_a_row_has_the_ratios_to_a_peer_that_was_measured() -> None:
    times = {name: {(1, 1): 30.0} for name in small_nets.OURS}
    assert small_nets.figures_of(times, (1, 1)).keys() == {f"{name} us" for name in times}
    times[small_nets.PEER] = {(1, 1): 20.0}
    assert small_nets.figures_of(times, (1, 1))["predict to onnxruntime"] == 1.5
