"""The order of the images to label: doubt, one of a group, small classes, a tenth at random."""

import random

import numpy as np
import pytest

from dist_net.photos.teaching.queue import RANDOM_EVERY, Candidate, doubts, in_order
from selection import few


def candidates(seed: int) -> list[Candidate]:
    draw = random.Random(seed)
    return [
        Candidate(
            f"{draw.getrandbits(256):064x}",
            draw.choice([None, "a"]),
            draw.random(),
            draw.randrange(3, 300),
            draw.randrange(80),
            np.ones(2, np.float32),
        )
        for _ in range(draw.randrange(1, 150))
    ]


@pytest.mark.parametrize("seed", few(range(20), 3))
def test_each_group_is_queued_once_by_its_most_doubtful_image(seed: int) -> None:
    given = candidates(seed)
    order = [*in_order(given)]
    assert sorted(each.group for each, _ in order) == sorted({each.group for each in given})
    for each, _ in order:
        assert each.doubt == max(other.doubt for other in given if other.group == each.group)
    chosen = [each for each, is_drawn in order if not is_drawn]
    keys = [(-int(10 * each.doubt), each.rarity) for each in chosen]
    assert keys == sorted(keys)
    assert [place for place, (_, is_drawn) in enumerate(order, 1) if is_drawn] == [
        *range(RANDOM_EVERY, len(order) + 1, RANDOM_EVERY)
    ]
    for place in range(RANDOM_EVERY, len(order) + 1, RANDOM_EVERY):
        left = [each.image for each, _ in order[place - 1 :]]
        assert order[place - 1][0].image == min(left, key=lambda digest: digest[::-1])


def test_a_label_is_doubtful_if_another_class_is_more_probable() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], np.float32)
    found = doubts(probabilities, np.array([0, 0, 1]))
    np.testing.assert_allclose(found, [0.1, 0.9, 0.5], atol=1e-6)
