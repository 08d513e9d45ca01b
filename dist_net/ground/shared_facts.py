"""The facts that hosts which train together must share, as one text; and how texts are compared."""

import math
from itertools import zip_longest

import numpy as np

from dist_net.ground.vector import Vector

REMEDIES = {
    "release": "install the same release of dist_net, unchanged, on both hosts",
    "recipe": "give both hosts the same recipe",
    "data": "the recipes are equal, the training data differ: give both hosts the same dataset, "
    "and a recipe that splits or draws it at random a seed",
    "weights": "the recipes draw other initial weights: seed the generator, as by "
    "torch.manual_seed(0)",
    "gradient": "the recipes compute other gradients of the same rows: give both hosts the same "
    "samples, and each random split or draw a seed, such as "
    "generator=torch.Generator().manual_seed(0); where only rounding differs, use "
    "Recipe(digest=...)",
    "bits": "start the workers of a run with --bits portable by 'dist-net train' or 'join'",
    "digest": "the recipes have other values of digest: give both hosts the same samples",
}
"""The remedy for each part of ``LoadedRecipe.digest`` that may differ."""

SHOWN = 40
DIRECTIONS, CHUNK = 8, 1 << 14
TOLERANCE = 0.01


def fingerprint(vector: Vector) -> str:
    """Return the logarithm of the vector's norm, and its components along fixed directions.

    A component is divided by the norm, so it is about 1. Gradients that differ by rounding agree
    within ``TOLERANCE``; gradients of other samples do not.
    """
    norm = float(np.linalg.norm(vector))
    random, components = np.random.PCG64(0), np.zeros(DIRECTIONS)
    for start in range(0, vector.size, CHUNK):
        part = vector[start : start + CHUNK].astype(np.float64)
        # NumPy guarantees raw bits to be the same in each release.
        bits = random.random_raw(DIRECTIONS * CHUNK // 64).astype("<u8").view(np.uint8)
        signs = np.unpackbits(bits).reshape(DIRECTIONS, CHUNK, copy=False)[:, : part.size]
        components += (2.0 * signs - 1) @ part
    numbers = (math.log(norm), *(components / norm)) if norm else (-math.inf,)
    return ",".join(f"{number:.3f}" for number in numbers)


def difference(theirs: str, own: str) -> tuple[str, str, str] | None:
    """Return the first fact that differs, cut short, in both texts, and the remedy; None: none."""
    for one, other in zip_longest(theirs.split("; "), own.split("; "), fillvalue="nothing"):
        if not _agree(one, other):
            known = [REMEDIES.get(each.partition(" ")[0]) for each in (other, one)]
            remedy = next(filter(None, known), REMEDIES["recipe"])
            return one[:SHOWN], other[:SHOWN], remedy
    return None


def _agree(one: str, other: str) -> bool:
    """Return whether facts are equal, or fingerprints of vectors that differ by rounding."""
    (kind, _, numbers), (other_kind, _, other_numbers) = one.partition(" "), other.partition(" ")
    if one == other or kind != other_kind or kind not in ("weights", "gradient"):
        return one == other
    try:
        pairs = zip(numbers.split(","), other_numbers.split(","), strict=True)
        return all(abs(float(a) - float(b)) <= TOLERANCE for a, b in pairs)
    except ValueError:  # a peer's text may have anything
        return False
