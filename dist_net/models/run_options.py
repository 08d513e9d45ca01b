"""What a run is asked to be: a recipe, and what the command line changes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from dist_net.data import Dataset
from dist_net.errors import RunDirectoryError, SettingError
from dist_net.optim import optimizer_named
from dist_net.parameter_server.settings import LEASE_MINIBATCHES, RunSettings
from dist_net.recipes.recipe import LoadedRecipe, RecipeRecord


@dataclass(frozen=True)
class RunOptions:
    """A recipe's reference, and the settings of a run.

    Those that are None are the recipe's own. ``recipe_files`` are the digests of the files in the
    run directory that the recipe was copied to; a built-in recipe has none there.
    """

    recipe: str
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    lease_minibatches: int = LEASE_MINIBATCHES
    seed: int = 0
    checkpoint_every_s: float = 30.0
    recipe_files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.checkpoint_every_s > 0:
            raise SettingError(
                f"checkpoint_every_s={self.checkpoint_every_s:g}: expected a number of seconds "
                f"above 0"
            )

    def settings(self, loaded: LoadedRecipe, dataset: Dataset) -> RunSettings:
        """The run's settings; raises SettingError or UnknownOptimizerError."""
        recipe = loaded.recipe
        given = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "optimizer": None if self.optimizer is None else optimizer_named(self.optimizer),
            "learning_rate": self.learning_rate,
        }
        chosen: dict[str, Any] = {
            name: getattr(recipe, name) if value is None else value for name, value in given.items()
        }
        return RunSettings(
            recipe=loaded.reference,
            recipe_digest=loaded.digest(dataset),
            recipe_record=RecipeRecord.of(loaded, dataset).to_json(),
            layout=recipe.model.layout.shapes,
            momenta=recipe.model.layout.momenta,
            samples=len(dataset.train_labels),
            lease_minibatches=self.lease_minibatches,
            seed=self.seed,
            schedule=recipe.schedule,
            **chosen,
        )

    def replaced_by(self, **given: Any) -> Self:
        """These options, but for those of ``given`` that are not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def to_json(self) -> str:
        """The options as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What ``to_json`` wrote; raises RunDirectoryError if it is something else."""
        try:
            values = json.loads(text)
            named = {each.name for each in fields(cls)}
            return cls(**{name: value for name, value in values.items() if name in named})
        except (ValueError, AttributeError, TypeError) as error:
            raise RunDirectoryError(f"not a run's options: {text[:80]!r} ({error})") from error
