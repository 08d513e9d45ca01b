"""EfficientNet-Lite0: its shapes, and the known answers of its published weights."""

from pathlib import Path

import numpy as np
import pytest

from dist_net import nn
from dist_net.errors import MissingExtraError, ModelFileError
from dist_net.images import fit_image
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nn.inference import Inference, prepare, softmax
from naming import naming

PHOTOGRAPHS = Path("/usr/share/darknet/data")
# By an independent evaluation in float32, see the package's own preprocessing.
KNOWN = {
    "dog.jpg": {249: 0.33494, 235: 0.29170, 261: 0.03245},
    "eagle.jpg": {21: 0.53698, 22: 0.19440},
    "giraffe.jpg": {340: 0.55134},
}


@pytest.fixture(scope="module")
def weights():
    try:
        return lite0.read_weights()
    except MissingExtraError:
        pytest.skip("the weights are not installed (the extra `pretrained`)")


@pytest.fixture(scope="module")
def photographs():
    if not all((PHOTOGRAPHS / name).exists() for name in KNOWN):
        pytest.skip("Debian's package darknet is not installed")
    return np.stack(
        [fit_image(PHOTOGRAPHS / name, lite0.INPUT_SHAPE, lite0.FITTING) for name in KNOWN]
    )


@pytest.mark.parametrize("compiled", [False, None], ids=["numpy", "fastest"])
def test_the_answers_are_those_that_are_known(weights, photographs, compiled):
    session = Inference(lite0.model(), prepare(lite0.model(), weights), compiled=compiled)
    probabilities = softmax(session(photographs))
    session.close()
    for row, known in zip(probabilities, KNOWN.values(), strict=True):
        assert np.argsort(-row)[: len(known)].tolist() == list(known)
        np.testing.assert_allclose(row[list(known)], list(known.values()), rtol=0, atol=1e-4)


def test_the_classes_have_the_names_of_imagenets_order():
    names = lite0.imagenet_labels()
    assert len(names) == lite0.CLASSES
    assert (names[0], names[999]) == ("tench", "toilet tissue")
    assert [names[i] for i in (249, 235, 21, 22, 340)] == [
        *("malamute", "German shepherd", "kite", "bald eagle", "zebra"),
    ]


def test_the_net_has_its_published_size_and_maps():
    model = lite0.model()
    assert model.layout.trained_size == 4_652_008
    assert [(each.filters, each.stride) for each in lite0.blocks()] == [
        *[(16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (80, 2), (80, 1), (80, 1)],
        *[(112, 1), (112, 1), (112, 1), (192, 2), (192, 1), (192, 1), (192, 1), (320, 1)],
    ]
    features = nn.Model(nn.Features(lite0.EfficientNetLite0()), lite0.INPUT_SHAPE)
    assert features.classes == 1280


def test_it_can_have_other_classes():
    assert nn.Model(lite0.EfficientNetLite0(7), lite0.INPUT_SHAPE).classes == 7


def test_missing_weights_are_asked_for_by_the_extra_that_brings_them(monkeypatch):
    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package")
    with pytest.raises(MissingExtraError, match=naming("efficientnet-lite0", ".[pretrained]")):
        lite0.read_weights()


def test_another_file_in_its_place_is_refused(monkeypatch, tmp_path):
    (tmp_path / "other.pth").write_bytes(b"another")
    monkeypatch.setattr(lite0, "weights_file", lambda: tmp_path / "other.pth")
    with pytest.raises(ModelFileError, match=naming("other.pth", "18,826,032 bytes", "SHA-256")):
        lite0.read_weights()
