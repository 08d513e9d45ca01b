"""Pictures prepared by real processes, of which hostile pictures end some."""

import os
from pathlib import Path

import numpy as np
import pytest

from dist_net import fit_picture
from dist_net.cluster import picture_preparation
from dist_net.cluster.picture_preparation import prepare_pictures
from dist_net.data.picture_folder import PictureFolder
from dist_net.data.picture_samples import PicturePreprocessing
from dist_net.data.prepared_pictures import PreparedPictures
from dist_net.errors import ProcessFailedError, SkippedPicturesError
from drawn_pictures import cats_and_dogs

FIVE = PicturePreprocessing((5, 5, 3), "pad")

DEADLY_WORKER = """
import os, signal, sys
from dist_net.cluster.entry import entry_point
from dist_net.cluster.processes.picture_worker import add_arguments, run
from dist_net.data.picture_samples import PicturePreprocessing

input_of = PicturePreprocessing.input_of

def deadly(self, path):
    if path.parts[-2:] == ("cat", "03.png"):
        os.kill(os.getpid(), signal.SIGSEGV)
    return input_of(self, path)

PicturePreprocessing.input_of = deadly
sys.exit(entry_point(add_arguments, run))
"""


@pytest.fixture
def folder(tmp_path: Path) -> PictureFolder:
    return cats_and_dogs(tmp_path / "photos", each=20)


def prepare(folder: PictureFolder, **options: object) -> PreparedPictures:
    beside = folder.root.parent
    return prepare_pictures(folder, FIVE, beside, cache_dir=beside / "cache", **options)


def test_every_picture_is_in_its_row(folder: PictureFolder) -> None:
    shown: list[tuple[int, int]] = []
    with prepare(folder, workers=2, show=lambda *state: shown.append(state)) as pictures:
        assert pictures.pixels is not None
        for row, picture in zip(pictures.pixels, folder.pictures, strict=True):
            expected = fit_picture(folder.root / picture.path, (5, 5, 3), "pad")
            np.testing.assert_array_equal(row, expected)
    assert shown[0] == (0, 40)
    assert shown[-1] == (40, 40)
    assert shown == sorted(shown)


def test_without_room_in_the_cache_they_are_tried_all_the_same(folder: PictureFolder) -> None:
    (folder.root / "cat" / "07.png").write_text("text")
    folder = PictureFolder.read(folder.root)
    with prepare(folder, workers=1, cache_bytes=10) as pictures:
        assert pictures.pixels is None
        assert [path for path, _ in pictures.skipped] == ["cat/07.png"]


def test_a_picture_that_ends_its_process_costs_that_picture_only(
    folder: PictureFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly_worker.py").write_text(DEADLY_WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(picture_preparation, "WORKER_MODULE", "deadly_worker")
    with prepare(folder, workers=1) as pictures:
        reason = "the process that decoded it ended by signal 11, Segmentation fault"
        assert pictures.skipped == [("cat/03.png", reason)]
        assert pictures.pixels is not None
        is_black = (pictures.pixels == 0).all(axis=(1, 2, 3))
        assert np.flatnonzero(is_black).tolist() == [3]


def test_a_picture_that_hangs_is_given_up(tmp_path: Path) -> None:
    folder = cats_and_dogs(tmp_path / "photos", each=2)
    for picture in folder.pictures:
        path = folder.root / picture.path
        path.unlink()
        os.mkfifo(path)  # nobody writes into it
    with pytest.raises(SkippedPicturesError, match=r"1 of 4 .*: not decoded within 0.1 s$"):
        prepare(folder, workers=1, most_s_per_picture=0.1)


def test_an_interrupt_ends_all(folder: PictureFolder, tmp_path: Path) -> None:
    def interrupt(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, workers=2, show=interrupt)
    assert [path.suffix for path in (tmp_path / "cache" / "pictures").iterdir()] == [".lock"]


def test_a_process_that_cannot_start_is_named(
    folder: PictureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_preparation, "WORKER_MODULE", "dist_net.no_such_module")
    with pytest.raises(ProcessFailedError, match=r"picture-worker-0: it ended with code 1 \(log: "):
        prepare(folder, workers=1)
