"""The file that locates the prepared images of a run on this host, for its processes."""

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
    """The listed images of a folder, their preprocessing and their cache.

    ``test_part`` is the part on which the network is evaluated during training.
    """

    folder: ImageFolder
    preprocessing: ImagePreprocessing
    cache_dir: str
    cache_bytes: int
    test_part: str

    @property
    def cache(self) -> ImageCache:
        """Return the cache entry of the prepared images."""
        return ImageCache(Path(self.cache_dir), self.folder, self.preprocessing, self.cache_bytes)

    def to_json(self) -> str:
        """Return all fields as a JSON object."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file written from ``to_json``; raise ``RecipeError`` for any other content."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            folder, preprocessing = told.pop("folder"), told.pop("preprocessing")
            told.pop("features", "")  # written by earlier releases
            listed = folder["images" if "images" in folder else "pictures"]  # the key until 0.1.0
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
    """Return the dataset of ``recipe`` from the image cache of this host.

    Raise ``RecipeError`` if another host prepared the images, or the cache was emptied.
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
