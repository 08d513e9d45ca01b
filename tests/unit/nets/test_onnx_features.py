"""A net whose base is an ONNX file."""

from pathlib import Path

import numpy as np
import pytest

from dist_net.errors import ForeignModelError, RecipeError
from dist_net.nets.foreign_onnx import PixelOptions
from dist_net.nets.onnx_features import read_backbone
from dist_net.nets.recipes.image_recipe import Base, ImageRecipe
from dist_net.nn import Model
from dist_net.nn.inference import Inference, prepare
from foreign_files import centred, classifier, sum_and_product, written
from naming import naming


def test_a_file_is_layers_of_any_batch_size(tmp_path: Path) -> None:
    path = written(classifier(["N", 3, 4, 4]), tmp_path / "m.onnx")
    layers, shape, weights = read_backbone(path, PixelOptions(scale="2"))
    model = Model(layers, shape)
    assert np.isfinite(weights).all()
    assert len(weights) == model.layout.size
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)
    outputs = Inference(model, prepare(model, weights), batch_size=2)(images)
    assert np.allclose(outputs, 4 * images.mean((1, 2)) / 2, rtol=1e-5)


def test_only_files_from_images_to_rows_are_bases(tmp_path: Path) -> None:
    for model in (centred(), sum_and_product(), classifier([1, 3, 4, 4])):
        with pytest.raises(ForeignModelError, match=naming("m.onnx")):
            read_backbone(written(model, tmp_path / "m.onnx"), PixelOptions())


@pytest.mark.parametrize("text", ["", "1", "0 5", "-1 5", "1e9 5", "99999999999 5"])
def test_a_recipe_with_a_damaged_base_is_refused(text: str) -> None:
    base = Base("onnx", "b", (4, 4, 3), "crop", text)
    with pytest.raises(RecipeError, match="ONNX"):
        ImageRecipe.from_json(ImageRecipe("r", base, ("a", "b")).to_json())
