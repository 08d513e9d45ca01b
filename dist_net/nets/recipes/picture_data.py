"""Where the prepared pictures of a run lie on this host, as its processes are told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dist_net.data import Dataset
from dist_net.data.picture_folder import PictureFolder
from dist_net.data.picture_samples import MappedRows, PicturePreprocessing
from dist_net.data.picture_split import TRAIN, LabelledPicture, LeftOut
from dist_net.data.prepared_pictures import PictureCache, PreparedPictures
from dist_net.errors import RecipeError
from dist_net.nets.recipes.picture_recipe import PictureRecipe


@dataclass(frozen=True)
class PictureData:
    """A folder's pictures as they were listed, how they are prepared, and in which cache.

    ``test_part`` is what a net is evaluated on while it is trained; ``features`` the file of the
    base's features, if they are what is trained on.
    """

    folder: PictureFolder
    preprocessing: PicturePreprocessing
    cache_dir: str
    cache_bytes: int
    test_part: str
    features: str = ""

    @property
    def cache(self) -> PictureCache:
        """The place of the prepared pictures."""
        return PictureCache(Path(self.cache_dir), self.folder, self.preprocessing, self.cache_bytes)

    def to_json(self) -> str:
        """All of it as a JSON object."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What ``to_json`` gave, from a file; raises RecipeError for anything else."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            folder, preprocessing = told.pop("folder"), told.pop("preprocessing")
            return cls(
                folder=PictureFolder(
                    Path(folder["root"]),
                    tuple(LabelledPicture(*each) for each in folder["pictures"]),
                    tuple(folder["class_names"]),
                    tuple(LeftOut(*each) for each in folder["left_out"]),
                ),
                preprocessing=PicturePreprocessing(
                    tuple(preprocessing.pop("shape")), **preprocessing
                ),
                **told,
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RecipeError(
                f"{path}: {error}; expected the list of pictures that 'dist-net train FOLDER' "
                f"writes"
            ) from error


def load_pictures(recipe: PictureRecipe) -> Dataset:
    """The dataset of a recipe's stage, from the cache of the host that prepared it.

    Raises RecipeError where that is another host, or the cache was emptied.
    """
    if not recipe.data:
        raise _unknown(recipe)
    data = PictureData.read(Path(recipe.data))
    pictures = data.cache.find()
    if pictures is None:
        raise _unknown(recipe)
    if recipe.stage == "whole":
        return pictures.dataset(data.test_part, recipe.augmentation)
    try:
        features = np.load(data.features, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _unknown(recipe) from error
    return feature_dataset(pictures, features, data.test_part)


def _unknown(recipe: PictureRecipe) -> RecipeError:
    return RecipeError(
        f"the pictures that {recipe.name} was trained on are not prepared on this host; expected "
        f"the host that trained it, or train it anew: dist-net train FOLDER"
    )


def feature_dataset(
    pictures: PreparedPictures, features: NDArray[np.float32], test_part: str
) -> Dataset:
    """The features of a folder's pictures as a dataset; ``features`` is (views, N, F), borrowed.

    All views are trained on, and the first, of the pictures as they are, is tested.
    """
    views, count, width = features.shape
    rows = features.reshape(views * count, width, copy=False)
    trained = pictures.rows(TRAIN)
    every = np.concatenate([trained + view * count for view in range(views)])
    return Dataset(
        name=pictures.folder.root.name,
        train_inputs=MappedRows(rows, every),
        train_targets=np.tile(pictures.labels(TRAIN), views),
        test_inputs=MappedRows(rows, pictures.rows(test_part)),
        test_targets=pictures.labels(test_part),
        class_names=pictures.folder.class_names,
    )
