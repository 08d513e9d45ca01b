"""Recipes: a network and its dataset, or a gradient function, with the settings of training.

A recipe file is Python code that leaves a ``Recipe`` in a variable called ``recipe``. It may import
modules from its own folder. The built-in recipes are such files too. Recipes travel by reference:
every host runs its own file, and a digest shows whether the files are the same.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import KW_ONLY, asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike

from dist_net.data import DATASETS, Dataset, Progress, dataset_named
from dist_net.data.samples import samples_of
from dist_net.errors import (
    DistNetError,
    ModelSourceError,
    RecipeChangedError,
    RecipeError,
    UntrustedRecipeError,
)
from dist_net.ground.checkpoint import how_to_convert
from dist_net.ground.json_records import record_from_json
from dist_net.ground.release import release
from dist_net.ground.spelling import KnownOptions, did_you_mean
from dist_net.ground.vector import Vector
from dist_net.images.fitting import FITTINGS
from dist_net.nets.recipes.gradient_recipe import (
    ArrayShape,
    EvaluateWeights,
    GradientOfRows,
    OwnGradient,
    StateOfWeights,
    called,
    indices_as_dataset,
    layout_of,
)
from dist_net.nets.recipes.recipe_files import (
    RECIPE_FILE,
    RecipeFiles,
    digests_of,
    is_trusted,
    place_in_recipe,
    read_any,
    reader_of,
    sha256,
)
from dist_net.nn import Layer, Model, cross_entropy_of_logits
from dist_net.nn.losses import Loss, TargetMeaning
from dist_net.nn.parameters import Layout
from dist_net.optim import (
    OPTIMIZERS,
    Adam,
    ConstantRate,
    Optimizer,
    Schedule,
    UpdateRule,
    optimizer_named,
    schedule_named,
    start_rule,
)
from dist_net.optim.ranges import count, use_plain_numbers

BUILT_IN = Path(__file__).parent / "built_in"


@dataclass(frozen=True, eq=False)
class Recipe(KnownOptions):
    """A network and its dataset, or a gradient function, with the settings of training.

    ``dataset`` is the name of a dataset, or a function that returns a dataset with inputs of
    ``input_shape`` and ``input_dtype``. ``loss``, ``optimizer`` and ``schedule`` may be names, such
    as "mse", "adam" and "cosine", with default settings. For classes, the last layer has one output
    per class; otherwise the outputs must suit the loss and the targets. ``fitting`` is the method
    by which images are resized to ``input_shape``, in training and when the net is served: see
    ``dist_net.fit_image``. By default it is "pad" for a named dataset, and "exact" for a function,
    which does its own resizing. ``weights`` are the initial weights, unless the layers draw them. A
    gradient with a norm above ``clip_norm`` is scaled down to it; with ``average_decay`` an average
    of the weights is evaluated and served: see ``UpdateRule``. NumPy's numbers become Python's, and
    None a field's default.

    Without a network, ``gradient(weights, rows)`` returns the summed loss and the mean gradient of
    the samples at ``rows``, int64 indices below ``samples``; ``weights`` is required. Weights and
    gradients are flat float32 vectors, of the arrays ``parameters`` and then ``buffers``, which map
    names to shapes; by default one parameter, ``weights``. In the buffers' places, ``gradient``
    returns their new values. It must be a function of its arguments alone. ``evaluate(weights)``
    returns ``{"test_loss": ..., "test_accuracy": ...}``, and ``state_dict(weights)`` the trained
    state in the caller's own form. Workers whose initial weights, or gradients of some rows, differ
    by more than rounding are refused; a ``digest`` of the samples replaces the gradients.

    Raise RecipeError and SettingError for settings out of range, and the network's error if its
    layers do not fit together.
    """

    network: Layer | None = None
    dataset: str | Callable[[], Dataset] = ""
    input_shape: tuple[int, ...] = ()
    loss: Loss | str = cross_entropy_of_logits
    _: KW_ONLY
    optimizer: Optimizer | str = Adam()  # noqa: RUF009 - immutable
    learning_rate: float = 0.001
    schedule: Schedule | str = ConstantRate()  # noqa: RUF009 - immutable
    batch_size: int = 32
    epochs: int = 10
    fitting: str = ""
    input_dtype: DTypeLike = np.uint8
    weights: Vector | None = None
    clip_norm: float = 0.0
    average_decay: float = 0.0
    gradient: GradientOfRows | None = None
    samples: int = 0
    evaluate: EvaluateWeights | None = None
    parameters: Mapping[str, ArrayShape] | None = None
    buffers: Mapping[str, ArrayShape] = field(default_factory=dict)
    state_dict: StateOfWeights | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        use_plain_numbers(self)
        object.__setattr__(self, "optimizer", optimizer_named(self.optimizer))
        object.__setattr__(self, "schedule", schedule_named(self.schedule))
        if not self.fitting:
            fitting = "pad" if isinstance(self.dataset, str) else "exact"
            object.__setattr__(self, "fitting", fitting)
        if self.fitting not in FITTINGS:
            raise RecipeError(f"fitting={self.fitting!r}: expected one of {', '.join(FITTINGS)}")
        of_gradient = self.gradient, self.samples, self.evaluate, self.parameters
        if self.network is not None and any(of_gradient):
            raise RecipeError(
                "a network with gradient, samples, evaluate or parameters; expected a network and "
                "its dataset, or a gradient function"
            )
        if self.network is None and not (self.gradient or self.samples):
            raise RecipeError("network=None: expected a layer, such as Dense(10)")
        is_dataset = callable(self.dataset) or str(self.dataset) in DATASETS
        if self.network is not None and not is_dataset:
            raise RecipeError(
                f"dataset {self.dataset!r:.60}: expected one of {', '.join(DATASETS)}, or a "
                f"function that returns a Dataset"
            )
        if self.network is None:
            count("samples", self.samples)
        self.layout  # noqa: B018 - raises if the layers do not fit together

    @cached_property
    def trained(self) -> Model | OwnGradient:
        """What workers train: the network with its loss, or the gradient function."""
        if self.network is not None:
            return Model(self.network, self.input_shape, self.loss, self.input_dtype)
        layout = layout_of(self.weights, self.parameters, self.buffers)
        rows = np.linspace(0, self.samples - 1, min(self.batch_size, self.samples))
        facts = layout, self.initial_weights(0), rows.astype(np.int64), self.digest
        return OwnGradient(self.gradient, self.evaluate, *facts)

    @property
    def model(self) -> Model:
        """The network with its input shape and its loss; raise ModelSourceError without one."""
        if isinstance(self.trained, Model):
            return self.trained
        raise ModelSourceError(
            "the recipe has a gradient function and no network; expected a recipe with a "
            "network. Read the weights with dist_net.load(RUN).state_dict()"
        )

    @property
    def layout(self) -> Layout:
        return self.trained.layout

    def initial_weights(self, seed: int) -> Vector:
        """Return the initial parameters and buffers; the same for the same seed."""
        if self.weights is not None:
            return self.weights
        return self.layout.initial(np.random.default_rng(seed))

    def targets(self, dataset: Dataset) -> TargetMeaning:
        """Return what the dataset's targets mean to the loss."""
        given = samples_of(dataset.train_targets)
        return self.trained.targets(given.shape, given.dtype)

    def update_rule(
        self, optimizer: str, clip_norm: float = 0.0, average_decay: float = 0.0
    ) -> UpdateRule:
        """Return the rule of local steps by the optimizer of this text, as a server names it."""
        layout = self.layout
        chosen = optimizer_named(optimizer, optimizer_named(self.optimizer))
        return start_rule(chosen, layout.shapes, layout.momenta, clip_norm, average_decay)

    @property
    def max_state_size(self) -> int:
        """The largest size of a training state, whichever optimizer replaces the recipe's."""
        optimizers = optimizer_named(self.optimizer), *OPTIMIZERS.values()
        return max(self.update_rule(str(each), 0.0, 0.5).state_size for each in optimizers)

    def load_dataset(self, progress: Progress | None = None) -> Dataset:
        """Load the dataset, fetching it if missing; raise RecipeError if the net cannot use it."""
        if self.network is None:
            return indices_as_dataset(self.samples)
        if isinstance(self.dataset, str):
            dataset = dataset_named(self.dataset, progress=progress)
        else:
            with redirect_stdout(sys.stderr):
                dataset = called("dataset", self.dataset)
            if not isinstance(dataset, Dataset):
                raise RecipeError(
                    f"the recipe's dataset function returned {type(dataset).__name__}: expected a "
                    f"Dataset"
                )
        self.require_dataset(dataset)
        return dataset

    def require_dataset(self, dataset: Dataset) -> None:
        """Raise RecipeError if the net cannot use the dataset, DatasetError for a bad label."""
        inputs, targets = samples_of(dataset.train_inputs), samples_of(dataset.train_targets)
        model = self.model
        if expected := model.expected_inputs(inputs.shape, inputs.dtype):
            raise RecipeError(
                f"dataset {dataset.name!r} has inputs of shape {inputs.shape} and dtype "
                f"{inputs.dtype}; {expected}"
            )
        classes = len(dataset.class_names)
        if classes and targets.shape == () and model.output_shape != (classes,):
            raise RecipeError(
                f"dataset {dataset.name!r} has {classes} classes, but the network's outputs have "
                f"shape {model.output_shape}; expected one output per class"
            )
        try:
            model.require_targets(targets.shape, targets.dtype)
        except DistNetError as error:
            raise RecipeError(
                f"the loss does not take the targets of dataset {dataset.name!r}: {error}"
            ) from error
        dataset.require_labels(self.targets(dataset).require)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with its ``reference``: a built-in name or an absolute path.

    ``files`` maps names to contents: RECIPE_FILE, and the files of its folder that it imported.
    ``path`` is the executed file: the original, or a run directory's copy. ``portable`` are the
    files without values specific to this host; None: they contain none.
    """

    reference: str
    name: str
    files: Mapping[str, bytes]
    recipe: Recipe
    path: Path = Path()
    portable: Mapping[str, bytes] | None = None

    @property
    def file_digests(self) -> dict[str, str]:
        return digests_of(self.files)

    def digest(self, dataset: Dataset) -> str:
        """Return ``release X; recipe Y; data Z``, the facts of hosts that train together.

        X is the release of dist_net; Y a SHA-256 of the recipe's files, the names and shapes of
        parameters and buffers, and the buffers' momenta; Z is ``Dataset.digest``. More facts follow
        for a gradient function: see ``OwnGradient.facts``. ``difference`` compares them.
        """
        layout = self.recipe.layout
        shapes = repr((layout.shapes, layout.momenta)).encode()
        compared = self.files if self.portable is None else self.portable
        files = [content for _, content in sorted(compared.items())]
        recipe = sha256(b"\0".join([*files, shapes]))
        facts = own_release(), f"recipe {recipe}", f"data {dataset.digest()}"
        trained = self.recipe.trained
        return "; ".join((*facts, *(trained.facts if isinstance(trained, OwnGradient) else ())))


@dataclass(frozen=True)
class RecipeRecord:
    """A checkpoint's record of its recipe, besides the reference.

    ``files`` are the digests of the recipe's files, ``class_names`` the dataset's. Early releases
    recorded neither. The model of a folder of images also has its recipe, as JSON, and its
    ``calibration``, the fields of a ``Calibration``: one file replaces a version by the next.
    ``model`` is the JSON of a model that ``Model.save`` wrote, without a run.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    fitting: str = ""
    image_recipe: str = ""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> Self:
        """Return the record that ``to_json`` wrote. Raise RecipeError for other values."""
        try:
            record = record_from_json(cls, values)
            if record.fitting not in ("", *FITTINGS):
                raise ValueError(f"fitting={record.fitting!r}")
        except (TypeError, ValueError) as error:
            raise RecipeError(
                f"a run's record of its recipe is {str(values)[:80]!r} ({error}); expected digests "
                f"of files, the names of classes, and a fitting: {', '.join(FITTINGS)}"
            ) from error
        return record


def own_release() -> str:
    """Return the beginning of a recipe's digest: this host's release of dist_net."""
    return f"release {release()}"


def recipe_names() -> list[str]:
    return sorted(path.stem.replace("_", "-") for path in BUILT_IN.glob("[a-z]*.py"))


def built_in_recipe(name: str) -> LoadedRecipe:
    """Load a built-in recipe by name. Raise RecipeError for any other name, such as a path."""
    if name not in recipe_names():
        raise RecipeError(
            f"no built-in recipe {name!r:.80}; expected one of {', '.join(recipe_names())}"
        )
    path = BUILT_IN / f"{name.replace('-', '_')}.py"
    return _run(name, name, path, RecipeFiles(path, path, read_any))


def load_recipe(reference: str) -> LoadedRecipe:
    """Load the built-in recipe of that name, or run the recipe file at that path.

    ``reference`` must come from the user, not from a file or a peer: see ``built_in_recipe``.

    Raise RecipeError if neither exists, or if the file fails or defines no recipe.
    """
    names = recipe_names()
    if reference in names:
        return built_in_recipe(reference)
    path = Path(reference)
    if path.suffix != ".py" or not path.is_file():
        expected = (
            f"expected one of {', '.join(names)}, or the path of an existing Python file or folder "
            f"of images"
        )
        hint = did_you_mean(reference, names) or expected
        if path.is_file():
            by_python = "a Python file reads data such as this: see docs/learn/your_own_data.md"
            hint = how_to_convert(path) or by_python
        raise RecipeError(f"no recipe {reference!r}; {hint}")
    path = path.resolve()
    return _run(str(path), path.stem, path, RecipeFiles(path, path, read_any))


def load_recipe_copy(
    path: Path, reference: str, digests: Mapping[str, str], trust_recipe: bool = False
) -> LoadedRecipe:
    """Run the recipe in the file ``path``, a copy of ``reference``.

    Only this file and files of its folder run, and only if they have the ``digests`` of the
    originals. ``__file__`` is the original's path, so that the recipe finds its data.

    Raise UntrustedRecipeError unless ``trust_recipe`` or the user trusts all digests;
    RecipeChangedError if a file is missing or has changed; RecipeError if the recipe fails.
    """
    if not (trust_recipe or is_trusted(digests)):
        has_digest = RECIPE_FILE in digests
        raise UntrustedRecipeError(
            f"{path} is Python code that {'is not confirmed' if has_digest else 'has no digest'}; "
            f"expected a recipe that was trained with or confirmed on this host. Read it, and if "
            f"you trust its author, pass --trust-recipe"
        )
    files = RecipeFiles(path, Path(reference), reader_of(path, digests))
    return _run(reference, Path(reference).stem, path, files)


def _run(reference: str, name: str, path: Path, files: RecipeFiles) -> LoadedRecipe:
    try:
        with redirect_stdout(sys.stderr):
            recipe = files.run().get("recipe")
            if not isinstance(recipe, Recipe):
                raise RecipeError(
                    f"expected a Recipe in a variable called 'recipe', found "
                    f"{type(recipe).__name__}"
                )
    except RecipeChangedError:
        raise
    except DistNetError as error:
        raise RecipeError(f"recipe {place_in_recipe(error) or path}: {error}") from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        place = place_in_recipe(error) or path
        raise RecipeError(f"recipe {place}: {type(error).__name__}: {error}") from error
    return LoadedRecipe(reference, name, files.contents, recipe, path)
