"""The list of a run's images: whether a folder of another host holds the same ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import ImageCache, ImagePreprocessing
from dist_net.errors import DatasetError, RecipeError
from dist_net.nets.offered_recipe import ImageManifest
from drawn_images import draw_shapes
from naming import naming


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_shapes(tmp_path / "photos", 4)


@pytest.fixture
def manifest(folder: Path) -> ImageManifest:
    preprocessing = ImagePreprocessing((16, 16, 3), "crop")
    read = ImageFolder.read(folder)
    return ImageManifest.of(ImageCache(Path(), read, preprocessing))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "elsewhere"))


def test_the_same_folder_elsewhere_gives_the_same_images(
    manifest: ImageManifest, folder: Path, copy: Path
) -> None:
    (copy / "notes.txt").write_text("of this host alone")
    told = ImageManifest.from_json(manifest.to_json())
    assert told == manifest
    found = told.found_in(copy)
    assert found.root == copy
    there = ImageFolder.read(folder)
    assert [each[:4] for each in found.images] == [each[:4] for each in there.images]
    assert found.class_names == there.class_names


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (Path.unlink, "cannot be read here"),
        (_cut, "bytes here, and"),
        (_changed, "has another content here"),
    ],
)
def test_the_first_image_that_differs_is_named_and_how_many_do(
    manifest: ImageManifest, copy: Path, damage: Callable[[Path], None], says: str
) -> None:
    first, second = (copy / manifest.images[place].path for place in (2, 5))
    damage(first)
    damage(second)
    total = len(manifest.images)
    with pytest.raises(DatasetError, match=says) as refused:
        manifest.found_in(copy)
    assert f"2 of {total} images differ; the first: {manifest.images[2].path} " in str(
        refused.value
    )


def test_what_is_no_folder_is_named(manifest: ImageManifest, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=naming("none", "12 images", "3 classes")):
        manifest.found_in(tmp_path / "none")


@pytest.mark.parametrize(
    "changed",
    [
        {"images": [["../up.png", "circle", "train", 1, ""]]},
        {"images": [["/etc/passwd", "circle", "train", 1, ""]]},
        {"images": [["a.png", "no class", "train", 1, ""]]},
        {"images": [["a.png", "circle", "no part", 1, ""]]},
        {"images": [["a.png", "circle", "train", "1", ""]]},
        {"images": [["a.png"]]},
        {"class_names": [1]},
        {"preprocessing": {}},
        {"test_part": None},
    ],
)
def test_what_no_server_lists_is_refused(
    manifest: ImageManifest, changed: dict[str, object]
) -> None:
    text = json.dumps(json.loads(manifest.to_json()) | changed)
    with pytest.raises(RecipeError, match=naming("server", "images", text[:60])):
        ImageManifest.from_json(text)
