"""Features are computed once for an image's pixels, whatever its name, place or class."""

from pathlib import Path

import numpy as np
import pytest

from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import ImageCache, ImagePreprocessing
from dist_net.data.samples import ArraySamples
from dist_net.errors import FetchError, MissingExtraError, ModelSourceError
from dist_net.nets import efficientnet_lite0
from dist_net.nets.recipes.image_recipe import small_base
from dist_net.photos import bases
from dist_net.photos.bases import FeatureExtractor, FoundBase, Views, base_called
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.similar_images import thumbnails_and_digests
from dist_net.training.run.run_options import RunOptions
from drawn_images import cats_and_dogs
from naming import naming

BASE = small_base(16)
COUNT = 10


def test_a_missing_default_base_names_its_extra_and_the_choice_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(efficientnet_lite0, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=naming("pretrained", "--base none")):
        base_called(ImageOptions("photos", RunOptions("images")).base, lambda *_: None)


def extractor(place: Path, views: Views = Views()) -> FeatureExtractor:  # noqa: B008 - immutable
    if not (place / "photos").exists():
        cats_and_dogs(place / "photos", 2)
    folder = ImageFolder.read(place / "photos")
    cache = ImageCache(place, folder, ImagePreprocessing(BASE.input_shape, BASE.fitting))
    weights = np.random.default_rng(0).normal(size=BASE.model.layout.size).astype(np.float32)
    return FeatureExtractor(FoundBase(BASE, np.abs(weights)), views, 1, cache)


def images(seed: int = 0, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *BASE.input_shape), np.uint8)


def computed(of: FeatureExtractor, pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """The features, and of how many images they were computed anew."""
    shown = [(0, 0)]
    samples = ArraySamples(pixels)
    found = of.compute(
        samples, thumbnails_and_digests(samples)[1], lambda *each: shown.append(each)
    )
    assert shown[-1][0] == shown[-1][1]
    return np.array(found), shown[-1][1]


def test_the_net_is_compiled_once_for_images_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = bases.open_session
    monkeypatch.setattr(
        bases, "open_session", lambda *of: (opened.append(real(*of)), opened[-1])[1]
    )
    (tmp_path / "images").mkdir()
    of = extractor(tmp_path)
    found = [of.features_of(ArraySamples(images()[each : each + 1])) for each in range(3)]
    assert len(opened) == 1
    assert (np.concatenate(found) == computed(extractor(tmp_path), images()[:3])[0][:, 0]).all()


@pytest.mark.parametrize("views", [Views(), Views(3, seed=5)])
def test_only_new_pixels_are_computed(views: Views, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    before, count = computed(extractor(tmp_path, views), images())
    assert count == COUNT
    assert before.shape == (COUNT, views.count, BASE.features.classes)
    again, count = computed(extractor(tmp_path, views), images()[::-1])
    assert count == 0
    assert (again == before[::-1]).all()
    mixed = np.concatenate([images(1, 1), images()[4:], images(2, 2)])
    found, count = computed(extractor(tmp_path, views), mixed)
    assert count == 3
    assert (found[1:-2] == before[4:]).all()
    fresh, count = computed(extractor(tmp_path, Views(views.count, 6)), mixed[:1])
    assert count == (0 if views.count == 1 else 1)
    assert (fresh[:, 0] == found[:1, 0]).all()
    assert views.count == 1 or (fresh[:, 1] != found[:1, 1]).any()


@pytest.mark.parametrize("kept", [b"", b"PK\x03\x04 a zip file", b"\x93NUMPY\x01\x00v\x00{", None])
def test_a_damaged_file_is_computed_again(kept: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    before, _ = computed(extractor(tmp_path), images())
    (file,) = (tmp_path / "images").glob("*.features")
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] if kept is None else kept)
    again, count = computed(extractor(tmp_path), images())
    assert count == COUNT
    assert (again == before).all()
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").touch()
    with pytest.raises(FetchError, match=naming(tmp_path / "images")):
        computed(extractor(tmp_path), images())


def test_a_net_of_a_classifier_alone_is_no_base(tmp_path: Path) -> None:
    net = (
        "[net]\nheight=4\nwidth=4\nchannels=3\n[connected]\noutput=2\nactivation=linear\n[softmax]"
    )
    (tmp_path / "one.cfg").write_text(net)
    header = np.array([0, 2, 0, 0, 0], "<i4").tobytes()
    (tmp_path / "one.weights").write_bytes(header + np.ones(2 + 48 * 2, "<f4").tobytes())
    with pytest.raises(ModelSourceError, match=naming("the base one")):
        base_called(f"{tmp_path / 'one.cfg'},weights={tmp_path / 'one.weights'}", lambda _: None)
