"""Images that clients send are kept within a number of bytes, the least certain longest."""

import asyncio
import hashlib
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dist_net.data.collection import Collection, unlabelled_images
from dist_net.serving.gateway.collector import Collector, KeptImages
from dist_net.serving.pool.requests import InferenceRequest, Result, Status

EMPTY = bytes(100)


def test_of_the_older_half_the_most_certain_go_first(tmp_path: Path) -> None:
    kept, unlabelled = KeptImages(tmp_path, 1000), tmp_path / "unlabelled"
    for number in range(10):
        kept.store(bytes([number]) + EMPTY[1:], margin=100 * number)
        (path,) = unlabelled.glob(f"{hashlib.sha256(bytes([number]) + EMPTY[1:]).hexdigest()}-*")
        os.utime(path, (number, number))
    kept.store(b"x" + EMPTY[1:], margin=999)
    assert [each.margin for each in unlabelled_images(unlabelled)] == [
        *(0, 100, 200, 300),
        *(600, 700, 800, 900, 999),
    ]
    assert sum(each.bytes for each in unlabelled_images(unlabelled)) <= 900
    KeptImages(tmp_path, 1000).store(b"x" + EMPTY[1:], margin=5)  # known after a restart
    assert len(unlabelled_images(unlabelled)) == 9


@pytest.mark.parametrize("is_private", [False, True])
def test_an_image_is_kept_unless_its_sender_forbids_it_and_moves_when_it_is_labelled(
    tmp_path: Path, is_private: bool
) -> None:
    answer = Result(Status.OK, 1, np.array([0.7, 0.2, 0.1], "<f4").tobytes())

    async def answered() -> None:
        with closing(Collector({"signs": tmp_path})) as collector:
            for model in ("signs", "other"):
                image = InferenceRequest(model, b"image", is_image=True, is_private=is_private)
                collector(image, answer)

    asyncio.run(answered())
    found = unlabelled_images(tmp_path / "unlabelled")
    assert [each.margin for each in found] == ([] if is_private else [500])
    for each in found:
        with Collection(tmp_path) as collection:
            assert collection.knows(each.digest)
            collection.set_label(each.digest, "stop", "ann", ["stop"])
            assert (collection.images / each.digest).read_bytes() == b"image"
            assert not unlabelled_images(collection.unlabelled)
