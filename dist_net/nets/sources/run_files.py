"""The source of a trained model: a run directory, a checkpoint, or a file of ``Model.save``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dist_net.data import Progress
from dist_net.errors import ModelSourceError, NotACheckpointError
from dist_net.nets.recipes.recipe import RecipeRecord
from dist_net.nets.sources.found_model import MODELS, FoundModel, class_names_of, found_model
from dist_net.nets.trained_model import (
    calibrated_weights,
    calibration_of,
    load_trained,
    read_held_out,
)


@dataclass(frozen=True)
class TrainedRun:
    """A run directory or a checkpoint file; ``labels`` replace the names of its classes."""

    path: Path
    labels: Path | None
    progress: Progress
    trust_recipe: bool = False

    def read(self) -> FoundModel:
        """Return the model of the current checkpoint.

        Raise ModelSourceError if the file is not a checkpoint, and see ``load_trained``.
        """
        try:
            loaded, checkpoint = load_trained(self.path, self.trust_recipe)
        except NotACheckpointError as error:
            if self.path.is_dir():
                raise
            raise ModelSourceError(f"{self.path} is not a model; expected {MODELS}") from error
        record = RecipeRecord.from_json(checkpoint.recipe_record)
        has_classes = checkpoint.settings.get("has_classes", True)
        recorded = (record.class_names or None) if has_classes else ()
        names = class_names_of(loaded, self.labels, recorded, self.progress)
        calibration = calibration_of(checkpoint)
        weights = calibrated_weights(loaded, checkpoint)
        return replace(
            found_model(loaded, weights, names, record.fitting),
            unknown_below=calibration.threshold if calibration else 0.0,
            held_out=partial(read_held_out, self.path, loaded),
        )
