"""docs/layers.md lists every layer with its arguments and defaults."""

import inspect
from pathlib import Path

import pytest

from dist_net import nn
from dist_net.autodiff.arrays import shown
from dist_net.nn import layers, sequences
from dist_net.nn.layers import ACTIVATIONS

PAGE = Path(__file__).parents[3] / "docs" / "layers.md"
LAYERS = [
    value
    for name, value in vars(nn).items()
    if inspect.isclass(value)
    and value.__module__ in (layers.__name__, sequences.__name__)
    and name != "Layer"
]


def call_of(layer: type) -> str:
    """The call of a layer with every argument, as its signature has it."""
    arguments = []
    for each in inspect.signature(layer).parameters.values():
        star = "*" if each.kind is each.VAR_POSITIONAL else ""
        default = "" if each.default is each.empty else f"={shown(each.default)}"
        arguments.append(f"{star}{each.name}{default}")
    return f"`{layer.__name__}({', '.join(arguments)})`"


def test_the_layers_are_found() -> None:
    assert {nn.Dense, nn.Sequential, nn.BatchNorm} <= {*LAYERS}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_the_page_has_the_layer_and_explains_each_argument(layer: type) -> None:
    rows = PAGE.read_text().splitlines()
    assert any(row.startswith(f"| {call_of(layer)} |") for row in rows), call_of(layer)
    explained = "".join(row.split("|")[1] for row in rows if row.startswith("| `"))
    for name in inspect.signature(layer).parameters:
        assert f"`{name}`" in explained


def test_the_page_has_the_activations_and_initializers() -> None:
    page = PAGE.read_text()
    initializers = ("glorot_uniform", "he_normal", "he_uniform", "small_normal", "zeros", "ones")
    for name in (*ACTIVATIONS, *initializers):
        assert f"`{name}`" in page
