"""The facts that hosts compare: equal but for rounding, or named with the remedy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_net.ground.shared_facts import difference, fingerprint

SIZES, SEEDS = st.integers(1, 300), st.integers(0, 2**32)
GRADIENT = "gradient 1.000,0.500,-0.250"


def vector(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@given(SEEDS, SIZES, st.floats(-6, 6))
def test_vectors_that_differ_by_rounding_agree(seed: int, size: int, exponent: float) -> None:
    one = vector(seed, size) * np.float32(10**exponent)
    other = (one * (1 + 1e-5 * vector(seed + 1, size))).astype(np.float32)
    assert difference(f"gradient {fingerprint(one)}", f"gradient {fingerprint(other)}") is None


@given(SEEDS, st.integers(30, 300), st.floats(0.1, 1))
def test_gradients_of_other_samples_are_told_apart(seed: int, size: int, share: float) -> None:
    one = vector(seed, size)
    other = (1 - share) * one + share * vector(seed + 1, size)
    facts = difference(f"gradient {fingerprint(one)}", f"gradient {fingerprint(other)}")
    assert facts is not None
    assert "seed" in facts[2]


def test_vectors_of_another_length_are_told_apart() -> None:
    one = vector(0, 100)
    assert difference(f"weights {fingerprint(one)}", f"weights {fingerprint(2 * one)}") is not None
    zero = fingerprint(np.zeros(100, np.float32))
    assert difference(f"gradient {zero}", f"gradient {zero}") is None
    assert difference(f"gradient {zero}", f"gradient {fingerprint(one)}") is not None


@pytest.mark.parametrize(
    "theirs",
    ["", "gradient", "gradient x", "gradient 1.0", "gradient nan,nan,nan", "weights", "data 5"],
)
def test_what_a_peer_sends_instead_of_a_fingerprint_differs(theirs: str) -> None:
    facts = difference(f"release 1; {theirs}", f"release 1; {GRADIENT}")
    assert facts is not None
    assert facts[:2] == (theirs, GRADIENT)


def test_the_first_difference_is_named_with_its_remedy() -> None:
    own = f"release 1; recipe 2; data 3; weights 4; {GRADIENT}"
    assert difference(own, own) is None
    assert difference(own.replace("0.500", "0.505"), own) is None  # rounding
    for part, remedy in (("data 3", "seed"), ("weights 4", "manual_seed"), ("recipe 2", "recipe")):
        facts = difference(own.replace(part, f"{part}0"), own)
        assert facts is not None
        assert facts[:2] == (f"{part}0", part)
        assert remedy in facts[2]
    facts = difference("release 1; recipe 2; data 3", own)
    assert facts is not None
    assert facts[0] == "nothing"
