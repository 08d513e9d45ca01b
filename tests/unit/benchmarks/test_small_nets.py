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
