"""The options of a run, and the settings that follow from them, the recipe and the dataset."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

from dist_net.data import Dataset
from dist_net.errors import RunDirectoryError, SettingError
from dist_net.ground.json_records import record_from_json
from dist_net.ground.shared_facts import difference
from dist_net.nets.recipes.recipe import LoadedRecipe, RecipeRecord
from dist_net.optim import AdamW, Optimizer, optimizer_named, schedule_named
from dist_net.optim.ranges import count, use_plain_numbers
from dist_net.processes.equipment import BITS, FAST, PORTABLE, with_bits
from dist_net.training.server.consistency import Consistency
from dist_net.training.server.journal import NEVER, sync_interval_s
from dist_net.training.server.settings import TAKEOVER_AFTER_S, WAITS, RunSettings
from dist_net.wire.messages import StepSettings


@dataclass(frozen=True)
class DatasetFacts:
    """Facts for a server that does not read the dataset; ``digest``: see ``LoadedRecipe``."""

    samples: int
    has_classes: bool
    class_names: tuple[str, ...]
    digest: str

    @classmethod
    def from_dataset(cls, loaded: LoadedRecipe, dataset: Dataset, bits: str) -> Self:
        samples, names = len(dataset.train_targets), tuple(map(str, dataset.class_names))
        has_classes = loaded.recipe.targets(dataset).is_of_sample
        return cls(samples, has_classes, names, with_bits(loaded.digest(dataset), bits))


@dataclass(frozen=True)
class RunOptions:
    """The options of a run: its recipe, and the values that replace the recipe's own.

    None means "not set": the recipe's own value, or the default. A ``clip_norm``, ``average_decay``
    or ``patience`` of 0 is none. ``keeps_best``: see ``BestWeights``; a ``patience`` sets it.
    ``consistency`` and ``local_steps``, by default "auto", ``takeover_after_s`` and ``minority``:
    see ``RunSettings``; ``sync``: see ``sync_interval_s``; ``bits``: see ``processes.equipment``;
    ``keep_checkpoints``: see ``write_checkpoint``; ``tensorboard``: see ``MetricsFiles``.
    ``recipe_files``: digests of the recipe's files in the run directory; none for a built-in
    recipe. ``data``: facts about the dataset, for the parameter server; see ``on``.
    """

    recipe: str
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    clip_norm: float | None = None
    average_decay: float | None = None
    consistency: str = str(Consistency.ROUNDS)
    local_steps: int | Literal["auto"] | None = None
    seed: int = 0
    checkpoint_every_s: float = 30.0
    keep_checkpoints: int = 3
    sync: str = NEVER
    bits: str = FAST
    takeover_after_s: float = TAKEOVER_AFTER_S
    minority: str = WAITS
    keeps_best: bool | None = None
    patience: int | None = None
    tensorboard: bool = False
    recipe_files: Mapping[str, str] = field(default_factory=dict)
    data: DatasetFacts | None = None

    def __post_init__(self) -> None:
        use_plain_numbers(self)
        Consistency.parse(self.consistency)
        if self.local_steps not in (None, "auto"):
            count("local_steps", self.local_steps)
        sync_interval_s(self.sync)
        if self.bits not in BITS:
            raise SettingError(f"bits={self.bits!r}; expected {' or '.join(BITS)}")
        if self.patience and self.keeps_best is False:
            raise SettingError(
                f"patience={self.patience}, which uses the best weights, with the last weights; "
                f"expected keep best, or patience 0"
            )
        if self.patience:
            object.__setattr__(self, "keeps_best", True)

    def on(self, loaded: LoadedRecipe, dataset: Dataset) -> Self:
        data = DatasetFacts.from_dataset(loaded, dataset, self.bits)
        if self.data is not None and difference(data.digest, self.data.digest) is None:
            data = self.data  # its fingerprints may be of another machine, and round differently
        return replace(self, recipe=loaded.reference, recipe_files=loaded.file_digests, data=data)

    def settings(self, loaded: LoadedRecipe) -> RunSettings:
        """Return the run's settings; reads the dataset only if ``data`` is None.

        Raise SettingError, and the errors of reading a dataset.
        """
        recipe = loaded.recipe
        data = self.data or DatasetFacts.from_dataset(loaded, recipe.load_dataset(), self.bits)
        chosen = {
            name: getattr(recipe if getattr(self, name) is None else self, name)
            for name in StepSettings._fields
        }
        chosen["optimizer"] = self._decayed(optimizer_named(chosen["optimizer"]))
        if self.keeps_best and not (recipe.network or recipe.evaluate):
            raise SettingError(
                "keeps_best or patience for a recipe that is not evaluated; expected its evaluate"
            )
        if self.bits == PORTABLE and recipe.network is None:
            raise SettingError(
                "bits='portable' for a recipe with its own gradient function, whose library "
                "chooses its own kernels; expected a recipe with a network, or bits='fast'"
            )
        recipe.trained.require_batch_size(min(chosen["batch_size"], data.samples))
        return RunSettings(
            recipe=loaded.reference,
            recipe_digest=data.digest,
            recipe_record=RecipeRecord(
                loaded.file_digests, data.class_names, recipe.fitting
            ).to_json(),
            layout=recipe.layout.shapes,
            momenta=recipe.layout.momenta,
            samples=data.samples,
            has_classes=data.has_classes,
            schedule=schedule_named(recipe.schedule),
            consistency=Consistency.parse(self.consistency),
            local_steps=None if self.local_steps == "auto" else self.local_steps,
            takeover_after_s=self.takeover_after_s,
            minority=self.minority,
            **chosen,
        )

    def _decayed(self, chosen: Optimizer) -> Optimizer:
        if self.weight_decay is None:
            return chosen
        if not isinstance(chosen, AdamW):
            raise SettingError(
                f"weight_decay={self.weight_decay:g} for {type(chosen).__name__}, which has none; "
                f"expected the optimizer adamw"
            )
        return replace(chosen, weight_decay=self.weight_decay)

    def replaced_by(self, **given: Any) -> Self:
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the options that ``to_json`` wrote. Raise RunDirectoryError for other text."""
        try:
            return record_from_json(cls, json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            raise RunDirectoryError(f"not a run's options: {text[:80]!r} ({error})") from error
