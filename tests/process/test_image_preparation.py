"""Images prepared by real processes, of which hostile images end some."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_net import fit_image
from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import (
    CACHE_BYTES,
    ImageCache,
    ImagePreprocessing,
    PreparedImages,
)
from dist_net.errors import DatasetError, ProcessFailedError
from dist_net.photos.image_preparation import prepare_images
from drawn_images import cats_and_dogs
from naming import naming

FIVE = ImagePreprocessing((5, 5, 3), "pad")


class Deadly(ImagePreprocessing):
    """Ends the process that decodes the first cats."""

    def input_of(self, path: Path) -> NDArray[np.uint8]:
        if path.parts[-2] == "cat" and path.name in ("03.png", "04.png"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().input_of(path)


class Failing(ImagePreprocessing):
    """Ends the process that decodes, but not by a signal."""

    def input_of(self, _: Path) -> NDArray[np.uint8]:
        os._exit(7)


# A script as a user may write it, which is not guarded against being imported.
SCRIPT = """
import sys
from pathlib import Path
from dist_net.photos.image_preparation import prepare_images
from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import ImagePreprocessing
from dist_net.data.prepared_images import ImageCache

folder = ImageFolder.read(sys.argv[1])
beside = folder.root.parent
with prepare_images(
    ImageCache(beside / "cache", folder, ImagePreprocessing((5, 5, 3), "pad")),
    beside,
    workers=2,
    show=lambda done, _: print(done, flush=True),
) as images:
    print("prepared", len(images.rows()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    return cats_and_dogs(tmp_path / "photos", each=20)


def prepare(
    folder: ImageFolder,
    preprocessing: ImagePreprocessing = FIVE,
    cache_bytes: int = CACHE_BYTES,
    **options: Any,
) -> PreparedImages:
    beside = folder.root.parent
    cache = ImageCache(beside / "cache", folder, preprocessing, cache_bytes)
    return prepare_images(cache, beside, **options)


def hang(path: Path) -> None:
    """Replace an image by a pipe, which nobody writes into."""
    path.unlink()
    os.mkfifo(path)


def test_every_image_is_in_its_row(folder: ImageFolder) -> None:
    shown: list[tuple[int, int]] = []
    with prepare(folder, workers=2, show=lambda *state: shown.append(state)) as images:
        assert images.pixels is not None
        for row, image in zip(images.pixels, folder.images, strict=True):
            expected = fit_image(folder.root / image.path, (5, 5, 3), "pad")
            np.testing.assert_array_equal(row, expected)
    assert shown[0] == (0, 40)
    assert shown[-1] == (40, 40)
    assert shown == sorted(shown)


def test_without_room_in_the_cache_they_are_tried_all_the_same(folder: ImageFolder) -> None:
    (folder.root / "cat" / "07.png").write_text("text")
    folder = ImageFolder.read(folder.root)
    with prepare(folder, workers=1, cache_bytes=10) as images:
        assert images.pixels is None
        assert [path for path, _ in images.skipped] == ["cat/07.png"]


@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_end_their_process_cost_those_images_only(
    folder: ImageFolder, workers: int
) -> None:
    shown: list[int] = []
    deadly = Deadly((5, 5, 3), "pad")
    with prepare(folder, deadly, workers=workers, show=lambda done, _: shown.append(done)) as found:
        reason = "the process that decoded it ended by signal 11, Segmentation fault"
        assert found.skipped == [("cat/03.png", reason), ("cat/04.png", reason)]
        assert found.pixels is not None
        is_black = (found.pixels == 0).all(axis=(1, 2, 3))
        assert np.flatnonzero(is_black).tolist() == [3, 4]
    assert shown == sorted(shown)
    assert shown[-1] == 40


def test_an_image_that_hangs_is_given_up(tmp_path: Path) -> None:
    folder = cats_and_dogs(tmp_path / "photos", each=2)
    for image in folder.images:
        hang(folder.root / image.path)
    with pytest.raises(DatasetError, match=naming("1 of 4", "0.1 s")):
        prepare(folder, workers=1, max_s_per_image=0.1)


def test_an_interrupt_ends_all(folder: ImageFolder, tmp_path: Path) -> None:
    hang(folder.root / "dog/19.png")

    def interrupt(done: int, _: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(folder, workers=2, show=interrupt)
    assert [path.suffix for path in (tmp_path / "cache" / "images").iterdir()] == [".lock"]


def test_a_process_that_ends_by_itself_is_a_failure(folder: ImageFolder) -> None:
    with pytest.raises(ProcessFailedError, match=naming("code 7", "image-workers.log")):
        prepare(folder, Failing((5, 5, 3), "pad"), workers=2)


def test_a_script_need_not_be_guarded(folder: ImageFolder, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder.root)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert (lines[0], lines[-1]) == ("0", "prepared 40")


def test_processes_end_with_a_parent_that_is_killed(folder: ImageFolder, tmp_path: Path) -> None:
    """What they leave behind is noticed after the test, as after every other."""
    hang(folder.root / "dog/19.png")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line == b"32\n":  # what is left hangs
                break
        parent.kill()
