"""Which pictures are decoded next, and which are skipped."""

import pytest

from dist_net.data.picture_chunks import PictureChunks
from dist_net.errors import SkippedPicturesError

PATHS = [f"cat/{index}.jpg" for index in range(25)]


def test_every_picture_is_handed_out_once() -> None:
    chunks = PictureChunks("photos", PATHS, 10)
    handed_out = [chunks.take() for _ in range(4)]
    assert handed_out == [(0, PATHS[:10]), (10, PATHS[10:20]), (20, PATHS[20:]), None]
    for chunk in handed_out[:3]:
        assert chunk is not None
        assert not chunks.is_complete
        chunks.decoded(chunk, {})
    assert chunks.is_complete
    assert (chunks.done, chunks.skipped) == (25, {})


def test_a_chunk_whose_process_ended_is_tried_again_picture_by_picture() -> None:
    chunks = PictureChunks("photos", PATHS, 10)
    lost = chunks.take()
    assert lost is not None
    chunks.lost(lost, "killed")
    alone = [chunks.take() for _ in range(10)]
    assert alone == [(index, [PATHS[index]]) for index in range(10)]
    assert chunks.take() == (10, PATHS[10:20])


def test_a_picture_that_alone_ends_its_process_is_skipped() -> None:
    chunks = PictureChunks("photos", PATHS, 1)
    first = chunks.take()
    assert first is not None
    chunks.lost(first, "killed")
    assert chunks.skipped == {"cat/0.jpg": "killed"}
    assert (chunks.done, chunks.waiting) == (1, 24)


def test_more_than_a_tenth_that_are_skipped_are_too_many() -> None:
    chunks = PictureChunks("photos", PATHS[:20], 10)
    for count, start in ((2, 0), (1, 10)):
        chunk = chunks.take()
        assert chunk is not None
        skipped = dict.fromkeys(PATHS[start : start + count], "damaged")
        if start == 0:
            chunks.decoded(chunk, skipped)
    with pytest.raises(
        SkippedPicturesError,
        match=r"^photos: 3 of 20 pictures cannot be used; expected at most 10%; .*: "
        r"cat/0.jpg: damaged; cat/1.jpg: damaged; cat/10.jpg: damaged$",
    ):
        chunks.decoded(chunk, skipped)


def test_of_many_skipped_pictures_some_are_named() -> None:
    chunks = PictureChunks("photos", PATHS, 25)
    chunk = chunks.take()
    assert chunk is not None
    with pytest.raises(SkippedPicturesError, match=r"cat/2.jpg: damaged; and more$"):
        chunks.decoded(chunk, dict.fromkeys(PATHS, "damaged"))
