"""Where the prepared images of a run lie on this host, as its processes are told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from dist_net.data import Dataset
from dist_net.data.image_folder import ImageFolder
from dist_net.data.image_samples import ImagePreprocessing
from dist_net.data.image_split import LabelledImage, LeftOut
from dist_net.data.prepared_images import ImageCache
from dist_net.errors import RecipeError
from dist_net.nets.recipes.image_recipe import ImageRecipe


@dataclass(frozen=True)
class ImageData:
    """A folder's images as they were listed, how they are prepared, and in which cache.

    ``test_part`` is what a net is evaluated on while it is trained.
    """

    folder: ImageFolder
    preprocessing: ImagePreprocessing
    cache_dir: str
    cache_bytes: int
    test_part: str

    @property
    def cache(self) -> ImageCache:
        """The place of the prepared images."""
        return ImageCache(Path(self.cache_dir), self.folder, self.preprocessing, self.cache_bytes)

    def to_json(self) -> str:
        """All of it as a JSON object."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What ``to_json`` gave, from a file; raises RecipeError for anything else."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            folder, preprocessing = told.pop("folder"), told.pop("preprocessing")
            told.pop("features", "")  # of earlier releases
            listed = folder["images" if "images" in folder else "pictures"]  # as until 0.1.0
            return cls(
                folder=ImageFolder(
                    Path(folder["root"]),
                    tuple(LabelledImage(*each) for each in listed),
                    tuple(folder["class_names"]),
                    tuple(LeftOut(*each) for each in folder["left_out"]),
                ),
                preprocessing=ImagePreprocessing(
                    tuple(preprocessing.pop("shape")), **preprocessing
                ),
                **told,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RecipeError(
                f"{path}: {error}; expected the list of images that 'dist-net train FOLDER' writes"
            ) from error


def load_images(recipe: ImageRecipe) -> Dataset:
    """The dataset of a recipe's stage, from the cache of the host that prepared it.

    Raises RecipeError where that is another host, or the cache was emptied.
    """
    if not recipe.data:
        raise _unknown(recipe)
    data = ImageData.read(Path(recipe.data))
    images = data.cache.find()
    if images is None:
        raise _unknown(recipe)
    return images.dataset(data.test_part, recipe.augmentation)


def _unknown(recipe: ImageRecipe) -> RecipeError:
    return RecipeError(
        f"the images that {recipe.name} was trained on are not prepared on this host; expected "
        f"the host that trained it, or train it anew: dist-net train FOLDER"
    )
