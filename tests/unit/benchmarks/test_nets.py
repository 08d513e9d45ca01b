"""What ``scripts/bench nets`` measures: the same nets in both libraries, and its table."""

import math

import pytest

from benchmarks.peers import jax_nets, pytorch_nets
from benchmarks.peers.nets import COMPILED, NETS, recipe
from dist_net.training.run.fit import SingleProcess


@pytest.mark.parametrize("name", NETS)
def test_both_libraries_train_as_many_parameters(name: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    parameters = pytorch_nets.network_of(name).parameters()
    trained = recipe(NETS[name])[0].layout.trained_size
    assert sum(each.numel() for each in parameters) == trained


@pytest.mark.parametrize("name", COMPILED)
def test_jax_trains_as_many_parameters(name: str) -> None:
    pytest.importorskip("jax", reason="JAX is not installed")
    inputs, _ = NETS[name].arrays()
    parameters = jax_nets.parameters_of(jax_nets.network_of(name), inputs)
    assert sum(each.size for each in parameters) == recipe(NETS[name])[0].layout.trained_size


@pytest.mark.parametrize("name", ["mlp", "table", "lstm"])
def test_a_net_learns_its_minibatch(name: str) -> None:
    net = NETS[name]
    training = SingleProcess(*recipe(net))
    losses = [training.train(0, 0, net.batch)[0] for _ in range(5)]
    assert math.isfinite(losses[-1])
    assert losses[-1] < losses[0]
