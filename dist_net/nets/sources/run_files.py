"""The source of a trained model: a run directory, a checkpoint, or a file of ``Model.save``."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dist_net.data import Progress
from dist_net.errors import ModelSourceError, NotACheckpointError
from dist_net.ground.checkpoint import Checkpoint, how_to_convert
from dist_net.nets.recipes.recipe import LoadedRecipe, RecipeRecord
from dist_net.nets.run_contents import calibrated_weights, calibration_of, read_held_out, read_run
from dist_net.nets.sources.found_model import MODELS, FoundModel, class_names_of, found_model

NO_PRECISION = "{} has no threshold to choose by a precision; expected a run on a folder of images"


@dataclass(frozen=True)
class RunFiles:
    """A run directory or checkpoint file; ``labels`` and ``precision`` replace the run's own."""

    path: Path
    labels: Path | None = None
    progress: Progress | None = None
    trust_recipe: bool = False
    precision: float | None = None

    def read(self) -> FoundModel:
        """Return the model of the current checkpoint; raise the errors of ``contents``."""
        return self.model_of(*self.contents())

    def contents(self) -> tuple[LoadedRecipe, Checkpoint]:
        """Return the recipe and the checkpoint. Raise ModelSourceError; see ``read_run``."""
        try:
            return read_run(self.path, self.trust_recipe)
        except NotACheckpointError as error:
            if self.path.is_dir():
                raise
            expected = how_to_convert(self.path) or f"expected {MODELS}"
            raise ModelSourceError(f"{self.path} is not a model; {expected}") from error

    def model_of(self, loaded: LoadedRecipe, checkpoint: Checkpoint) -> FoundModel:
        """Return the model; raise ModelSourceError, and SettingError for an unproven precision."""
        record = RecipeRecord.from_json(checkpoint.recipe_record)
        has_classes = checkpoint.settings.get("has_classes", True)
        recorded = (record.class_names or None) if has_classes else ()
        weights = calibrated_weights(loaded, checkpoint)
        calibration = calibration_of(checkpoint)
        if self.precision is not None:
            if calibration is None:
                raise ModelSourceError(NO_PRECISION.format(self.path))
            calibration = calibration.promising(self.precision)
        names = class_names_of(loaded, self.labels, recorded, self.progress)
        return replace(
            found_model(loaded, weights, names, record.fitting),
            unknown_below=calibration.threshold if calibration else 0.0,
            held_out=partial(read_held_out, self.path, loaded),
        )
