"""Data that names a Python file, which would write a file beside it if it were run."""

import json
from pathlib import Path

import numpy as np

from dist_net.ground.checkpoint import Checkpoint, write_checkpoint
from dist_net.nets.recipes.image_recipe import IMAGES, RECIPE_JSON, ImageRecipe, small_base
from dist_net.nets.recipes.recipe_files import sha256
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.run.run_options import RunOptions

CODE = """
from pathlib import Path
Path(__file__).with_name("was run").touch()
from dist_net.nets.recipes.built_in.digits import recipe
"""


class MarkedCode:
    """A Python file, and ``recipe``: the JSON of a recipe of images that names it."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "evil.py"
        self.file.write_text(CODE)
        recipe = json.loads(ImageRecipe("pets", small_base(), ("cat", "dog")).to_json())
        recipe["base"] |= {"kind": "recipe", "text": str(self.file), "input_shape": [8, 8]}
        self.recipe = json.dumps(recipe)

    @property
    def was_run(self) -> bool:
        return self.file.with_name("was run").exists()

    def run(self, path: Path) -> RunDirectory:
        """A run directory with this recipe, as if training had written it."""
        directory = RunDirectory(path)
        digests = {RECIPE_JSON: sha256(self.recipe.encode())}
        directory.make()
        options = RunOptions(IMAGES, recipe_files=digests)
        directory.begin(options.to_json(), {RECIPE_JSON: self.recipe.encode()})
        layout = ImageRecipe("pets", small_base(), ("cat", "dog")).model.layout
        weights, record = layout.initial(np.random.default_rng(0)), {"files": digests}
        checkpoint = Checkpoint(IMAGES, "", layout.shapes, 1, {}, {}, {}, weights, {}, record)
        write_checkpoint(directory.checkpoint, checkpoint)
        return directory
