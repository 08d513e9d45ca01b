"""What a run on a folder of images refuses before it makes anything."""

import json
from dataclasses import replace
from os.path import normpath
from pathlib import Path

import pytest

from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import ImageCache, ImagePreprocessing
from dist_net.errors import DatasetError, RunDirectoryError, SettingError
from dist_net.images.augmentation import Augmentation
from dist_net.photos.image_options import ImageOptions, new_run
from dist_net.photos.image_run import require_same_images
from dist_net.training.run.run_options import RunOptions
from drawn_images import cats_and_dogs
from naming import naming

RUN = RunOptions("images")


@pytest.mark.parametrize("given", ["photos/run", "."])
def test_a_run_among_the_images_is_refused_and_leaves_nothing_there(
    tmp_path: Path, given: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(DatasetError, match=naming(photos, tmp_path / given)):
        new_run(tmp_path / given, ImageOptions(str(photos), RUN, "none"))
    assert [*tmp_path.rglob("*")] == [photos]


def test_a_run_of_the_default_name_among_the_images_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=naming(tmp_path, "runs/")):
        new_run(None, ImageOptions(str(tmp_path), RUN, "none"))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("asked", [{"views": 2}, {"fine_tune": 1}])
def test_what_needs_a_base_is_refused_without_one(asked: dict[str, int]) -> None:
    with pytest.raises(
        SettingError, match=naming(*(f"{name}={value}" for name, value in asked.items()), "none")
    ):
        ImageOptions("photos", RUN, "none", **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [{"rotate": 181.0}, {"zoom": 95.0}, {"fine_tune": -1}])
def test_an_option_out_of_range_is_refused(asked: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=naming(*map("{0[0]}={0[1]:g}".format, asked.items()))):
        ImageOptions("photos", RUN, "some", **asked)  # type: ignore[arg-type]


def test_the_options_of_augmentation_are_in_the_units_of_users() -> None:
    given = {"flip": False, "rotate": 90.0, "zoom": 30.0, "colour_changes": False}
    options = ImageOptions("photos", RUN, "some", **given)  # type: ignore[arg-type]
    assert options.augmentation == Augmentation(0.7, flip=False, rotation=90)
    assert ImageOptions("photos", RUN, "some").augmentation.brightness > 0


def test_the_options_of_an_earlier_release_can_be_read(tmp_path: Path) -> None:
    options = ImageOptions("photos", RUN, "some", fine_tune="auto")
    told = json.loads(options.to_json()) | {"colour": True}
    (tmp_path / "folder.json").write_text(json.dumps(told))
    assert ImageOptions.read(tmp_path / "folder.json") == options
    told["run"]["epochs"] = 5  # a base's head ignored it
    (tmp_path / "folder.json").write_text(json.dumps(told))
    assert ImageOptions.read(tmp_path / "folder.json") == options


@pytest.mark.parametrize(
    ("run", "fine_tune", "named"),
    [
        (replace(RUN, epochs=2), 0, "epochs=2"),
        (replace(RUN, epochs=2), 3, "epochs=2"),
        (replace(RUN, learning_rate=0.5), 0, "learning_rate=0.5"),
    ],
)
def test_options_without_effect_on_a_head_are_refused(
    run: RunOptions, fine_tune: int, named: str
) -> None:
    with pytest.raises(SettingError, match=naming(named, "--fine-tune", "--base none")):
        ImageOptions("photos", run, "some", fine_tune=fine_tune)
    ImageOptions("photos", replace(RUN, epochs=2, learning_rate=0.5), "none")
    ImageOptions("photos", replace(RUN, learning_rate=0.5), "some", fine_tune="auto")


@pytest.mark.parametrize(
    ("labels", "of_copy"),
    [(None, None), ("/one/a/labels.csv", "/two/b/labels.csv"), ("/one/some.csv", "/two/some.csv")],
)
def test_a_copy_of_a_folder_has_the_labels_where_they_are_beside_the_folder(
    labels: str | None, of_copy: str | None
) -> None:
    options = ImageOptions("/one/a", RUN, "some", labels, views=3)
    copied = options.for_copy(Path("/two/b"))
    assert copied.labels_csv is None or normpath(copied.labels_csv) == of_copy
    assert (copied.labels_csv is None) is (of_copy is None)
    assert copied == replace(options, folder="/two/b", labels_csv=copied.labels_csv)


def cached(place: Path, folder: ImageFolder, digests: tuple[str, ...]) -> ImageCache:
    preprocessing = ImagePreprocessing((8, 8, 3), "crop")
    return ImageCache(place, folder, preprocessing, digests=digests)


def test_a_resumed_run_needs_half_of_its_images_whatever_their_sizes(tmp_path: Path) -> None:
    folder = cats_and_dogs(tmp_path / "photos", 2)
    before = cached(tmp_path, folder, ("a", "a", "b", "c"))

    def resume(*digests: str) -> None:
        require_same_images(before, cached(tmp_path, folder, digests))

    resume("a", "b", "d", "e")
    with pytest.raises(RunDirectoryError, match=naming(folder.root, 1, 4)):
        resume("a", "d", "e", "f")
    read = tmp_path / "pictures.json"
    read.write_text(before.to_json())
    assert ImageCache.read(read).digests == before.digests
