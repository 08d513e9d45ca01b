"""Near-duplicates are found without comparing every pair of images."""

import numpy as np
import pytest

from dist_net.photos import similar_images as module
from dist_net.photos.similar_images import SIDE, groups_of, near_duplicates

COUNT = 450


def smooth(count: int, generator: np.random.Generator) -> np.ndarray:
    """Images without edges, each another one."""
    coarse = generator.integers(30, 220, (count, 6, 6))
    weights = np.linspace(0, 4.99, SIDE)
    near, share = weights.astype(int), weights % 1
    for axis in (1, 2):
        shape = [1, 1, 1]
        shape[axis] = SIDE
        parts = coarse.take(near, axis), coarse.take(near + 1, axis)
        coarse = parts[0] + (parts[1] - parts[0]) * share.reshape(shape)
    return coarse


def sets(name: str) -> np.ndarray:
    """Images of which the second half is the first half, saved again."""
    generator = np.random.default_rng(0)
    half = smooth(COUNT // 2 if name == "distinct" else 1, generator)
    half = np.repeat(half, COUNT // 2 // len(half), 0)
    if name == "objects":
        for index, image in enumerate(half):
            y, x = 2 * (index // 15), 2 * (index % 15)
            image[y : y + 2, x : x + 2] += 40
    images = np.concatenate([half, half])
    images += generator.integers(-1, 2, images.shape)
    return images.clip(0, 255).astype(np.uint8).reshape(COUNT, -1)


def pairs_compared_one_by_one(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    low, high = module._intervals(thumbnails)
    return {
        (one, one + 1 + int(other))
        for one in range(len(thumbnails))
        for other in np.flatnonzero(
            ((low[one + 1 :] <= high[one]) & (high[one + 1 :] >= low[one])).all(1)
        )
    }


@pytest.mark.parametrize("name", ["distinct", "objects", "alike"])
def test_images_saved_again_are_found_and_no_others(name: str) -> None:
    thumbnails = sets(name)
    found = list(near_duplicates(thumbnails))
    groups = groups_of([""] * COUNT, found)
    half = COUNT // 2
    expected = np.zeros(half) if name == "alike" else np.arange(half)
    np.testing.assert_array_equal(groups, np.tile(expected, 2))
    pairs = {tuple(sorted((one, other))) for one, others in found for other in others.tolist()}
    assert pairs <= pairs_compared_one_by_one(thumbnails)


@pytest.mark.parametrize("name", ["distinct", "objects", "alike"])
def test_few_pairs_are_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    compared = module._compared

    def counted(rows, low, high):
        duplicates = list(compared(rows, low, high))
        alone = len(rows) - sum(len(others) for _, others in duplicates)
        sizes.append(alone * len(rows))
        return duplicates

    monkeypatch.setattr(module, "_compared", counted)
    list(near_duplicates(sets(name)))
    assert sum(sizes) < COUNT * COUNT / 4
