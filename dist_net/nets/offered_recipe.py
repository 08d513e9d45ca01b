"""A run's recipe on its way to another host, which checks, stores and runs it.

A built-in recipe is sent as its name, and a recipe of a folder of images as data. Any other recipe
is Python code: the other host writes it to a directory and runs it only if its user trusts it. A
manifest goes with a folder of images: the other host checks its copy of the folder against it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Self

from dist_net.data.image_folder import ImageFolder, file_digest
from dist_net.data.image_split import PARTS, LabelledImage
from dist_net.data.prepared_images import ImageCache, ImagePreprocessing
from dist_net.errors import DatasetError, RecipeError
from dist_net.ground.json_records import record_from_json
from dist_net.nets.recipe_origins import MANIFEST, RecipeOrigin, origin_of
from dist_net.nets.recipes.recipe import LoadedRecipe, own_release
from dist_net.nets.recipes.recipe_files import RECIPE_FILE, digests_of
from dist_net.nets.run_directory import RunDirectory
from dist_net.wire.messages import RecipeOffer

MAX_MANIFEST_BYTES = 64 << 20
MAX_FILES = 64
MAX_FILE_BYTES = 1 << 20


class ListedImage(NamedTuple):
    """An image that a run uses; ``path`` is relative to the folder, with slashes."""

    path: str
    class_name: str
    part: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ImageManifest:
    """The images of a run, their classes and their preprocessing; ``options`` for a standby."""

    images: tuple[ListedImage, ...]
    class_names: tuple[str, ...]
    preprocessing: ImagePreprocessing
    test_part: str
    options: str = ""

    @classmethod
    def of(cls, cache: ImageCache, options: str = "") -> Self:
        """Return the manifest of the images; reads every file of the folder to digest it."""
        listed = [
            ListedImage(*each[:4], file_digest(cache.folder.root / each.path))
            for each in cache.folder.images
            if each.part
        ]
        names, test_part = cache.folder.class_names, cache.test_part
        return cls(tuple(listed), names, cache.preprocessing, test_part, options)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse the output of ``to_json``; raise ``RecipeError`` for any other text."""
        try:
            manifest = record_from_json(cls, json.loads(text))
            manifest._check()
        except (ValueError, TypeError, RecursionError) as error:
            raise RecipeError(
                f"the server's list of images is {str(text)[:60]!r} ({error}); expected that of "
                f"'dist-net train FOLDER'"
            ) from error
        return manifest

    def _check(self) -> None:
        for path, class_name, part, *_ in self.images:
            place = PurePosixPath(path)
            if place.is_absolute() or ".." in place.parts or "\0" in path:
                raise ValueError(f"a path that leads elsewhere, {path!r}")
            if class_name not in self.class_names or part not in PARTS:
                raise ValueError(f"{path!r} of class {class_name!r} and part {part!r}")

    def found_in(self, root: Path) -> ImageFolder:
        """Return the manifest's images in a folder, which may hold others. Raise DatasetError."""
        if not root.is_dir():
            raise DatasetError(f"{root} is no folder; expected the run's, with {self}")
        found: list[LabelledImage] = []
        differences: list[str] = []
        for listed in self.images:
            path = root / listed.path
            try:
                status = path.stat()
            except OSError as error:
                differences.append(f"{listed.path} cannot be read here ({error.strerror})")
                continue
            if status.st_size != listed.size_bytes:
                differences.append(
                    f"{listed.path} has {status.st_size:,} bytes here, and {listed.size_bytes:,} "
                    f"there"
                )
            elif file_digest(path) != listed.sha256:
                differences.append(f"{listed.path} has another content here")
            found.append(LabelledImage(*listed[:4], status.st_mtime_ns))
        if differences:
            raise DatasetError(
                f"{root} is not the folder that the server trains on: {len(differences):,} of "
                f"{len(self.images):,} images differ; the first: {differences[0]}; expected "
                f"the same files: copy the folder again"
            )
        return ImageFolder(root, tuple(found), self.class_names, ())

    def __str__(self) -> str:
        return f"{len(self.images):,} images of {len(self.class_names)} classes"


def recipe_offer(
    loaded: LoadedRecipe,
    recipe_digest: str,
    class_names: tuple[str, ...] = (),
    manifest: bytes | None = None,
    options: str = "",
) -> RecipeOffer | None:
    """Return the server's offer to hosts without its recipe; None if it is too large to send.

    ``manifest``: see ``ImageManifest``; ``options``: of the run, see ``RunOptions.to_json``.
    """
    origin = origin_of(loaded.reference)
    files = origin.files_of(loaded)
    if len(files) > MAX_FILES or any(len(each) > MAX_FILE_BYTES for each in files.values()):
        return None
    if manifest is not None:
        if len(manifest) > MAX_MANIFEST_BYTES:
            return None
        files = {**files, MANIFEST: manifest}
    payloads = tuple(part for name, content in files.items() for part in (name.encode(), content))
    reference = "" if origin.is_code else loaded.reference
    names = json.dumps(class_names)
    name = "".join(each if each.isprintable() else "?" for each in loaded.name)[:128]
    return RecipeOffer(name, reference, recipe_digest, names, options, payloads)


@dataclass(frozen=True)
class OfferedRecipe:
    """A checked recipe of another host. The server names no path: it cannot choose a file here."""

    name: str
    origin: RecipeOrigin
    digest: str
    class_names: tuple[str, ...]
    files: Mapping[str, bytes]
    options: str = ""

    @classmethod
    def from_offer(cls, offer: RecipeOffer) -> Self:
        """Check a server's offer; raise RecipeError if it is invalid or of another release."""
        theirs = offer.recipe_digest.partition("; ")[0]
        if theirs != own_release():
            raise RecipeError(
                f"the server has {theirs[:60]} of dist_net, this host {own_release()}; install the "
                f"same release, unmodified, on both hosts"
            )
        if len(offer.payloads) % 2 or len(offer.payloads) > 2 * MAX_FILES:
            raise RecipeError(
                f"the server's recipe has {len(offer.payloads)} parts; expected the name and the "
                f"content of each of at most {MAX_FILES} files"
            )
        files = {
            bytes(name).decode("utf-8", "replace"): bytes(content)
            for name, content in zip(offer.payloads[::2], offer.payloads[1::2], strict=True)
        }
        origin = origin_of(offer.reference)
        if not origin.has_files(files):
            raise RecipeError(
                f"the server's recipe {offer.name!r} is {offer.reference!r} with files "
                f"{sorted(files)!r:.80}; expected the name of a built-in recipe, or {RECIPE_FILE} "
                f"and Python files"
            )
        names = _class_names(offer.class_names)
        return cls(offer.name, origin, offer.recipe_digest, names, files, offer.options)

    def keep(
        self, directory: RunDirectory, original: str = "", data: str | Path | None = None
    ) -> None:
        """Write the recipe to a run directory, from which this host's processes load it.

        ``original``, or a file in ``data``, becomes the code's ``__file__``: data is beside it.
        """
        beside = directory.path if data is None else Path(data).resolve()
        own = str(beside / f"{Path(self.name).name or 'recipe'}.py")
        reference = self.origin.reference or original or own
        options = json.dumps({"recipe": reference, "recipe_files": self.file_digests})
        directory.begin(options, self.files)

    @property
    def file_digests(self) -> dict[str, str]:
        return digests_of(self.files)


def _class_names(text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise RecipeError(f"the server's class names are {text[:80]!r}; expected a JSON array")
    return tuple(names)
