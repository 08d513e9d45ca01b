"""Images prepared once: whole or not at all, shared, bounded, and renewed when a file changes."""

import errno
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import (
    Decode,
    Entry,
    ImageCache,
    ImagePreprocessing,
    PreparedImages,
)
from dist_net.errors import DatasetError, FetchError, ImageError
from dist_net.images.augmentation import Augmentation
from drawn_images import cats_and_dogs, drawn_folder
from naming import naming

FIVE = ImagePreprocessing((5, 5, 3), "stretch")
ROW_BYTES = 75


class Decoder:
    """Decodes as the processes do, here, and counts how often it is asked."""

    def __init__(self, folder: ImageFolder, preprocessing: ImagePreprocessing = FIVE) -> None:
        self._folder = folder
        self._preprocessing = preprocessing
        self.calls = 0

    def __call__(self, path: Path | None, missing: Sequence[int]) -> Mapping[str, str]:
        self.calls += 1
        self.decoded = [self._folder.images[row].path for row in missing]
        shape = (len(self._folder.images), *self._preprocessing.shape)
        rows, skipped = np.zeros(shape, np.uint8), {}
        if path is not None:
            rows = np.memmap(path, np.uint8, "r+", shape=shape)
        for index in missing:
            image = self._folder.images[index]
            try:
                rows[index] = self._preprocessing.input_of(self._folder.root / image.path)
            except ImageError:
                skipped[image.path] = "damaged"
        return skipped


def not_asked(_path: Path | None, _rows: Sequence[int]) -> NoReturn:
    raise AssertionError("it is decoded again")


def nobody() -> NoReturn:
    raise AssertionError("another process is waited for")


def prepared(cache: Path, folder: ImageFolder, decode: Decode, **options: Any) -> PreparedImages:
    return ImageCache(cache, folder, FIVE, **options).prepare(decode, nobody)


def files(cache: Path) -> list[str]:
    return sorted(path.suffix for path in (cache / "images").iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    return cats_and_dogs(tmp_path / "photos")


def test_images_are_decoded_once(tmp_path: Path, folder: ImageFolder) -> None:
    decode = Decoder(folder)
    with prepared(tmp_path / "cache", folder, decode) as first:
        assert first.pixels is not None
        assert first.pixels.shape == (20, 5, 5, 3)
        assert not first.pixels.flags.writeable
    with prepared(tmp_path / "cache", folder, not_asked) as again:
        np.testing.assert_array_equal(again.pixels, first.pixels)
    assert files(tmp_path / "cache") == [".json", ".lock", ".pixels"]


def test_only_new_images_are_decoded_after_others_were_moved_or_changed(
    tmp_path: Path, folder: ImageFolder
) -> None:
    prepared(tmp_path / "cache", folder, Decoder(folder)).close()
    (folder.root / "dog/moved").mkdir()
    (folder.root / "cat/00.png").rename(folder.root / "dog/moved/00.png")
    (folder.root / "cat/01.png").rename(folder.root / "dog/renamed.png")
    Image.new("RGB", (7, 7), (1, 2, 3)).save(folder.root / "cat/02.png")
    changed = ImageFolder.read(folder.root)
    decode, alone = Decoder(changed), Decoder(changed)
    with prepared(tmp_path / "cache", changed, decode) as images:
        expected = prepared(tmp_path / "other", changed, alone)
        np.testing.assert_array_equal(images.pixels, expected.pixels)
        expected.close()
    assert decode.decoded == ["cat/02.png", "dog/renamed.png"]


def test_images_form_a_dataset(tmp_path: Path, folder: ImageFolder) -> None:
    with prepared(tmp_path / "cache", folder, Decoder(folder)) as images:
        dataset = images.dataset("validation", Augmentation())
    assert (dataset.name, dataset.class_names) == ("photos", ("cat", "dog"))
    assert (len(dataset.train_inputs), len(dataset.test_inputs)) == (16, 4)
    assert (dataset.input_shape, list(dataset.test_targets)) == ((5, 5, 3), [0, 0, 1, 1])


def test_another_split_or_other_names_of_classes_need_no_decoding(
    tmp_path: Path, folder: ImageFolder
) -> None:
    prepared(tmp_path / "cache", folder, Decoder(folder)).close()
    other = ImageFolder.read(folder.root, validation=0.5, seed=7)
    with prepared(tmp_path / "cache", other, not_asked) as images:
        assert len(images.rows("validation")) == 10


def test_a_damaged_image_is_in_no_part_and_named(tmp_path: Path) -> None:
    folder = cats_and_dogs(tmp_path / "photos")
    (folder.root / "cat" / "03.png").write_text("text")
    (folder.root / "notes.txt").write_text("text")
    folder = ImageFolder.read(folder.root)
    with prepared(tmp_path / "cache", folder, Decoder(folder)) as images:
        used = sum(len(images.rows(part)) for part in ("train", "validation"))
        assert used == 19
        assert images.skipped == [
            ("cat/03.png", "damaged"),
            ("notes.txt", "lies in no class's folder"),
        ]


def test_a_class_of_damaged_images_only_is_refused(tmp_path: Path) -> None:
    names = [*(f"cat/{index}.png" for index in range(9)), "dog/0.png"]
    root = drawn_folder(tmp_path / "photos", names).root
    (root / "dog" / "0.png").write_text("text")
    folder = ImageFolder.read(root)
    with pytest.raises(DatasetError, match=naming("'dog'")):
        prepared(tmp_path / "cache", folder, Decoder(folder))


def test_a_file_that_changed_is_decoded_again(tmp_path: Path, folder: ImageFolder) -> None:
    prepared(tmp_path / "cache", folder, Decoder(folder)).close()
    changed = folder.root / "cat" / "00.png"
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    folder = ImageFolder.read(folder.root)
    decode = Decoder(folder)
    prepared(tmp_path / "cache", folder, decode).close()
    assert decode.calls == 1


@pytest.mark.parametrize(
    "other",
    [
        ImagePreprocessing((5, 5, 3), "crop"),
        ImagePreprocessing((5, 5), "stretch"),
        ImagePreprocessing((5, 5, 3), "stretch", max_pixels=10_000),
    ],
)
def test_another_preprocessing_has_another_place(
    tmp_path: Path, folder: ImageFolder, other: ImagePreprocessing
) -> None:
    assert ImageCache(tmp_path, folder, other).key != ImageCache(tmp_path, folder, FIVE).key


def test_a_copy_of_the_folder_has_the_same_place(tmp_path: Path, folder: ImageFolder) -> None:
    moved = tmp_path / "moved"
    folder.root.rename(moved)
    copy = ImageFolder.read(moved)
    assert ImageCache(tmp_path, copy, FIVE).key == ImageCache(tmp_path, folder, FIVE).key


def test_what_is_interrupted_leaves_nothing(tmp_path: Path, folder: ImageFolder) -> None:
    def interrupted(_path: Path | None, _rows: Sequence[int]) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path / "cache", folder, interrupted)
    assert files(tmp_path / "cache") == [".lock"]
    assert ImageCache(tmp_path / "cache", folder, FIVE).find() is None


def test_what_a_killed_process_left_is_not_taken_for_whole(
    tmp_path: Path, folder: ImageFolder
) -> None:
    prepared(tmp_path / "cache", folder, Decoder(folder)).close()
    (pixels,) = (tmp_path / "cache" / "images").glob("*.pixels")
    pixels.write_bytes(pixels.read_bytes()[:-1])
    pixels.with_name(f"{pixels.name}.123.partial").write_bytes(b"half")
    decode = Decoder(folder)
    prepared(tmp_path / "cache", folder, decode).close()
    assert decode.calls == 1
    assert files(tmp_path / "cache") == [".json", ".lock", ".pixels"]


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"is_stored": true, "skipped": 3}'])
def test_a_damaged_record_is_made_anew(tmp_path: Path, folder: ImageFolder, record: str) -> None:
    prepared(tmp_path / "cache", folder, Decoder(folder)).close()
    (path,) = (tmp_path / "cache" / "images").glob("*.json")
    path.write_text(record)
    decode = Decoder(folder)
    prepared(tmp_path / "cache", folder, decode).close()
    assert decode.calls == 1


def test_a_full_disk_is_one_clear_error_before_anything_is_decoded(
    tmp_path: Path, folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        FetchError, match=naming("images", "No space left on device", "1,500 bytes")
    ):
        prepared(tmp_path / "cache", folder, not_asked)
    assert files(tmp_path / "cache") == [".lock"]


def test_a_cache_that_is_no_directory_is_one_clear_error(
    tmp_path: Path, folder: ImageFolder
) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(FetchError, match=naming("cache/images", "Not a directory")):
        prepared(tmp_path / "cache", folder, not_asked)


# Two at once


def test_of_two_at_once_one_waits_for_the_other(tmp_path: Path, folder: ImageFolder) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def slowly(path: Path | None, rows: Sequence[int]) -> Mapping[str, str]:
        begun.set()
        assert may_go_on.wait(60)
        return Decoder(folder)(path, rows)

    first = threading.Thread(target=lambda: prepared(tmp_path / "cache", folder, slowly).close())
    first.start()
    try:
        assert begun.wait(60)
        cache = ImageCache(tmp_path / "cache", folder, FIVE)
        assert cache.find() is None
        with cache.prepare(not_asked, waiting=may_go_on.set) as second:
            assert second.pixels is not None
    finally:
        may_go_on.set()
        first.join()


def test_two_may_use_the_same(tmp_path: Path, folder: ImageFolder) -> None:
    with (
        prepared(tmp_path / "cache", folder, Decoder(folder)),
        prepared(tmp_path / "cache", folder, not_asked),
    ):
        pass


def test_who_waited_for_one_that_failed_does_it_itself(tmp_path: Path, folder: ImageFolder) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def failing(_path: Path | None, _rows: Sequence[int]) -> NoReturn:
        begun.set()
        assert may_go_on.wait(60)
        raise FetchError("as a test")

    def fail() -> None:
        with pytest.raises(FetchError):
            prepared(tmp_path / "cache", folder, failing)

    first = threading.Thread(target=fail)
    first.start()
    try:
        assert begun.wait(60)
        decode = Decoder(folder)
        ImageCache(tmp_path / "cache", folder, FIVE).prepare(decode, may_go_on.set).close()
        assert decode.calls == 1
    finally:
        may_go_on.set()
        first.join()


# How much room


def test_what_is_too_large_for_the_cache_is_decoded_when_it_is_read(
    tmp_path: Path, folder: ImageFolder
) -> None:
    with prepared(tmp_path / "cache", folder, Decoder(folder)) as mapped:
        expected = mapped.dataset("validation").digest()
    decode = Decoder(folder)
    small = {"cache_bytes": 20 * ROW_BYTES - 1}
    with prepared(tmp_path / "small", folder, decode, **small) as decoded:
        assert decoded.pixels is None
        assert decoded.dataset("validation").digest() == expected
    prepared(tmp_path / "small", folder, not_asked, **small).close()
    assert files(tmp_path / "small") == [".json", ".lock"]
    with prepared(tmp_path / "small", folder, decode) as stored:
        assert stored.pixels is not None
    assert decode.calls == 2


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    first, second, third = (cats_and_dogs(tmp_path / name, each=5) for name in "abc")
    for age, folder in ((3, first), (2, second)):
        prepared(tmp_path / "cache", folder, Decoder(folder)).close()
        (path,) = (tmp_path / "cache" / "images").glob(
            f"{ImageCache(tmp_path, folder, FIVE).key}.json"
        )
        os.utime(path, (path.stat().st_mtime - age,) * 2)
        os.utime(path.with_suffix(".pixels"), (0, 0))
    prepared(tmp_path / "cache", first, not_asked).close()
    prepared(
        tmp_path / "cache", third, Decoder(third), cache_bytes=2 * 10 * ROW_BYTES + 1500
    ).close()
    caches = [ImageCache(tmp_path / "cache", each, FIVE) for each in (first, second, third)]
    found = [cache.find() for cache in caches]
    assert [each is not None for each in found] == [True, False, True]
    for each in found:
        if each is not None:
            each.close()


def test_a_file_that_another_process_removes_meanwhile_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (cats_and_dogs(tmp_path / name, each=5) for name in "ab")
    prepared(tmp_path / "cache", first, Decoder(first)).close()
    listed = ImageCache._entries

    def list_and_remove(self: ImageCache) -> dict[str, Entry]:
        entries = listed(self)
        for path in entries.get(ImageCache(tmp_path, first, FIVE).key, ()):
            path.unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(ImageCache, "_entries", list_and_remove)
    few = 10 * ROW_BYTES
    with prepared(tmp_path / "cache", second, Decoder(second), cache_bytes=few) as images:
        assert images.pixels is not None


def test_the_directory_is_listed_as_often_whatever_it_contains(
    tmp_path: Path, folder: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []
    for name in ("listdir", "scandir"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda path, real=real: (listings.append(path), real(path))[1]
        )
    counts = []
    for others in (0, 20):
        directory = tmp_path / str(others) / "images"
        directory.mkdir(parents=True)
        for number in range(others):  # each set of images that was ever prepared leaves its lock
            (directory / f"{number:032x}.lock").touch()
            (directory / f"{number:032x}.json").write_text("{}")
        listings.clear()
        prepared(directory.parent, folder, Decoder(folder)).close()
        counts.append(sum(Path(os.fsdecode(path)) == directory for path in listings))
    assert counts[0] == counts[1] > 0


def test_what_is_in_use_stays(tmp_path: Path) -> None:
    first, second = (cats_and_dogs(tmp_path / name, each=5) for name in "ab")
    with prepared(tmp_path / "cache", first, Decoder(first)):
        prepared(tmp_path / "cache", second, Decoder(second), cache_bytes=10 * ROW_BYTES).close()
        prepared(tmp_path / "cache", first, not_asked).close()
