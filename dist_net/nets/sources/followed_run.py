"""The source of a model in training: its parameter server."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from dist_net.data import Progress
from dist_net.errors import RecipeError, UntrustedRecipeError
from dist_net.nets.observer import Observer
from dist_net.nets.offered_recipe import OfferedRecipe
from dist_net.nets.recipes.recipe import LoadedRecipe, built_in_recipe, recipe_names
from dist_net.nets.recipes.recipe_files import is_trusted
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.nets.sources.found_model import FoundModel, class_names_of, found_model
from dist_net.wire.security import PeerKeys

ANSWER_WITHIN_S = 5.0


@dataclass
class FollowedRun:
    """A model in training, read from the parameter server at ``address``."""

    address: str
    keys: PeerKeys | None
    labels: Path | None
    progress: Progress
    trust_recipe: bool = False
    _loaded: LoadedRecipe | None = None
    _reference: str = ""  # the server's reference of that recipe
    _class_names: tuple[str, ...] | None = None
    _kept: TemporaryDirectory[str] | None = None  # of a recipe that the server sent

    def version(self) -> int:
        """Return the number of updates that the server has applied; raise NoAnswerError."""
        with Observer(self.address, self.keys, ANSWER_WITHIN_S) as observer:
            return int(observer.run_value("version"))

    def read(self) -> FoundModel:
        """Return the server's model. Raise NoAnswerError, UntrustedRecipeError or RecipeError."""
        with Observer(self.address, self.keys, ANSWER_WITHIN_S) as observer:
            reference = str(observer.run_value("recipe"))
            if self._loaded is None or self._reference != reference:
                self._class_names = None  # unless the server sends them
                self._loaded, self._reference = self._load(reference, observer), reference
            snapshot = observer.snapshot()
        size = self._loaded.recipe.layout.size
        if len(snapshot.weights) != size:
            raise RecipeError(
                f"the server at {self.address} trains {len(snapshot.weights):,} weights, but this "
                f"host's recipe {reference} has {size:,}; expected the same recipe on both hosts"
            )
        names = class_names_of(self._loaded, self.labels, self._class_names, self.progress)
        found = found_model(self._loaded, snapshot.weights, names)
        return replace(found, version=snapshot.version)

    def _load(self, reference: str, observer: Observer) -> LoadedRecipe:
        """Load a built-in recipe, or one sent by the server, which cannot choose a file to run."""
        if reference in recipe_names():
            return built_in_recipe(reference)
        offered = OfferedRecipe.from_offer(observer.recipe())
        if offered.is_code and not (self.trust_recipe or is_trusted(offered.file_digests)):
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
