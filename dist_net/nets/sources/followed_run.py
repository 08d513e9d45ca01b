"""The source of a model in training: its parameter server, or the successor of that."""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dist_net.data import Progress
from dist_net.errors import NoAnswerError, RecipeError, UntrustedRecipeError
from dist_net.nets.observer import Following, Observer, value_in
from dist_net.nets.offered_recipe import OfferedRecipe
from dist_net.nets.recipe_origins import BuiltInOrigin, origin_of
from dist_net.nets.recipes.recipe import LoadedRecipe, built_in_recipe
from dist_net.nets.recipes.recipe_files import is_trusted
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources.found_model import FoundModel, class_names_of, found_model
from dist_net.wire.security import PeerKeys
from dist_net.wire.standbys import term_number
from dist_net.wire.transport import ServerAccess

ANSWER_WITHIN_S = 5.0


@dataclass
class FollowedRun:
    """A model in training, read from the parameter server at ``address``, or from its successor.

    Only versions after ``version_read`` are read: a successor repeats some with other weights.
    """

    address: str
    keys: PeerKeys | None
    labels: Path | None
    progress: Progress
    trust_recipe: bool = False
    version_read: int = -1
    _loaded: LoadedRecipe | None = None
    _reference: str = ""  # the server's reference of that recipe
    _class_names: tuple[str, ...] | None = None
    _kept: TemporaryDirectory[str] | None = None  # of a recipe that the server sent

    def __post_init__(self) -> None:
        self._following = Following(ServerAccess(self.address, self.keys))
        self._number = secrets.randbits(63)

    def to_json(self) -> str:
        """Return what ``resume`` takes in another process that reads this model."""
        places = self._following.places
        seen = {"version": self.version_read, "term": places.term, "standby_list": places.text}
        return json.dumps(seen)

    def resume(self, text: str) -> None:
        seen = json.loads(text)
        self.version_read = seen["version"]
        self._following.places.accepts(seen)

    @contextmanager
    def _observed(self) -> Iterator[tuple[Observer, dict[str, Any]]]:
        following = self._following
        following.reader = self._number, max(0, self.version_read)
        with following.observed(ANSWER_WITHIN_S) as (observer, report):
            version = int(value_in(report, "version", following.server.address))
            if version < self.version_read and term_number(following.places.term) > 1:
                raise NoAnswerError(
                    f"the run continues at {following.server.address} from version {version:,}; "
                    f"expected more than version {self.version_read:,}, which was read before"
                )
            yield observer, report

    def version(self) -> int:
        """Return the number of updates that the server has applied; raise NoAnswerError."""
        with self._observed() as (_, report):
            return int(report["version"])

    def read(self) -> FoundModel:
        """Return the server's model. Raise NoAnswerError, UntrustedRecipeError or RecipeError."""
        with self._observed() as (observer, report):
            reference = str(value_in(report, "recipe", self.address))
            if self._loaded is None or self._reference != reference:
                self._class_names = None  # unless the server sends them
                self._loaded, self._reference = self._load(reference, observer), reference
            snapshot = observer.snapshot(*self._following.reader)
        size = self._loaded.recipe.layout.size
        if len(snapshot.weights) != size:
            raise RecipeError(
                f"the server at {self.address} trains {len(snapshot.weights):,} weights, but this "
                f"host's recipe {reference} has {size:,}; expected the same recipe on both hosts"
            )
        names = class_names_of(self._loaded, self.labels, self._class_names, self.progress)
        found = found_model(self._loaded, snapshot.weights, names)
        self.version_read = snapshot.version
        return replace(found, version=snapshot.version)

    def _load(self, reference: str, observer: Observer) -> LoadedRecipe:
        """Load a built-in recipe, or one sent by the server, which cannot choose a file to run."""
        if isinstance(origin_of(reference), BuiltInOrigin):
            return built_in_recipe(reference)
        offered = OfferedRecipe.from_offer(observer.recipe())
        if offered.origin.is_code and not (self.trust_recipe or is_trusted(offered.file_digests)):
            raise UntrustedRecipeError(
                f"the server at {self.address} trains the recipe of a file, {reference!r}, "
                f"which is Python code; pass --trust-recipe to run the copy that the server sends"
            )
        self._kept = TemporaryDirectory(prefix="dist-net-recipe-")
        directory = RunDirectory(Path(self._kept.name) / "run")
        directory.make()
        self._class_names = offered.class_names
        offered.keep(directory, reference)  # the data is beside the original, if on this host
        return load_run_recipe(directory, trust_recipe=True)
