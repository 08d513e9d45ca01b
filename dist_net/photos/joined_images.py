"""Join another host's run on a folder of images, with this host's copy of the folder."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dist_net.data import default_cache_dir
from dist_net.data.prepared_images import CACHE_BYTES
from dist_net.errors import DatasetError
from dist_net.nets.image_manifest import MANIFEST, ImageManifest
from dist_net.nets.offered_recipe import OfferedRecipe
from dist_net.nets.recipes.image_data import ImageData
from dist_net.nets.recipes.image_recipe import RECIPE_JSON, ImageRecipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.image_preparation import prepare_images
from dist_net.processes.terminal import CountProgress


def prepare_folder(
    offered: OfferedRecipe,
    folder: Path | None,
    directory: RunDirectory,
    console: Console,
    opened: ExitStack,
) -> int:
    """Prepare the images, write the workers' files, and return the number of training images.

    The files are written to ``directory``. The images stay in the cache until ``opened`` is
    closed. Raise DatasetError if ``folder`` is None or differs from the server's folder.
    """
    manifest = ImageManifest.from_json(offered.files.get(MANIFEST, b""))
    if folder is None:
        raise DatasetError(
            f"the server trains on its folder {offered.name!r}, with {manifest}; expected the "
            f"same folder on this host: --data FOLDER"
        )
    found = manifest.found_in(folder.resolve())
    data = ImageData(
        *(found, manifest.preprocessing, str(default_cache_dir()), CACHE_BYTES, manifest.test_part)
    )
    with CountProgress(console, "preparing images", "images prepared") as shown:
        images = prepare_images(found, data.preprocessing, directory.logs, show=shown)
    opened.enter_context(images)
    directory.write(directory.images, data.to_json())
    recipe = ImageRecipe.from_json(offered.files[RECIPE_JSON])
    own = replace(recipe, data=str(directory.images.resolve()))
    replace(offered, files={RECIPE_JSON: own.to_json().encode()}).keep(directory)
    return len(images.rows("train"))
