"""A model that is ready to compute, whatever its source: ``load``, ``LoadedModel`` and ``Run``."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dist_net.data import Progress
from dist_net.data.samples import Values
from dist_net.errors import (
    DatasetError,
    DistNetError,
    ImageError,
    ModelSourceError,
    NotFiniteError,
    SettingError,
    UntrustedRecipeError,
)
from dist_net.export.exported_model import ExportedModel
from dist_net.export.formats import format_of, write_exported
from dist_net.export.onnxruntime_engine import NUMPY, computed_by
from dist_net.ground.checkpoint import Checkpoint
from dist_net.ground.files import refusing_long_names
from dist_net.ground.vector import Vector
from dist_net.images.decoding import ImageSource, name_of
from dist_net.images.fitting import ImageInputs
from dist_net.images.labels import Prediction, top_predictions
from dist_net.nets import run_contents
from dist_net.nets.foreign_onnx import ForeignModel, OnnxSession, open_session, outputs_by_name
from dist_net.nets.recipe_origins import saved_recipe
from dist_net.nets.recipes.recipe import LoadedRecipe
from dist_net.nets.sources.found_model import FoundModel, RunFiles, found_model
from dist_net.nets.sources.named_source import ModelSource, parse_pool_sources
from dist_net.nets.tensor_specs import Inputs, Specs, fitting_inputs
from dist_net.nn import Model
from dist_net.nn.inference import Inference, softmax
from dist_net.nn.losses import cross_entropy_of_probabilities
from dist_net.processes.equipment import available_cores
from dist_net.processes.terminal import FetchProgress, plain_console
from dist_net.training.run.callbacks import EpochResult, History
from dist_net.training.run.evaluation import Evaluation, Evaluator, evaluate_recipe
from dist_net.training.run.fit import dataset_of

IMAGES_AT_ONCE = 8

ClassifiedImage = list[Prediction] | ImageError | NotFiniteError
"""The result for one image: the likeliest classes, or an error."""


class LoadedModel:
    """A model with its weights, ready to compute; see ``load``.

    ``compiled``: use the kernels of the extra ``fast`` if it is installed. Threads may share a
    model: their calls take turns.
    """

    def __init__(self, source: ModelSource, name: str, engine: str = NUMPY) -> None:
        self._source, self.name, self._engine = source, name, engine
        self.compiled = True
        self._turn = Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @cached_property
    def found(self) -> FoundModel:
        """The contents of the source, read once; raise the errors of ``load``."""
        return computed_by(self._source.read(), self._engine)

    @cached_property
    def _session(self) -> Inference | OnnxSession:
        found = self.found
        return open_session(found.model, found.prepared, available_cores(), compiled=self.compiled)

    @property
    def inputs(self) -> Specs:
        """The name, dtype and shape of each input, without the axis of samples."""
        return self.found.specs[0]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.found.labels

    @property
    def model(self) -> Model:
        """Return the network with its weights. Raise ExportError for an ONNX file."""
        model = self.found.own_model
        model.weights = self.weights
        return model

    @property
    def weights(self) -> Vector:
        """Return the evaluated weights, a flat vector; see ``Layout``."""
        return self.found.weights()

    def state_dict(self) -> Any:
        """Return the parameters and buffers by name. Raise ExportError for an ONNX file."""
        return self.found.own_model.layout.views(self.weights)

    def predict(self, inputs: Inputs) -> Any:
        """Return the output, an array; with several outputs, a dict of arrays by name.

        ``inputs`` have the shape ``(N, *shape)``, or ``shape`` for one sample, and the type in
        ``inputs`` or of the same kind; several are a dict or a structured array. The outputs of a
        classifier may be logits: see ``probabilities``. Raise ShapeError or DTypeError for inputs
        that do not fit, and TensorInputError if an ONNX file refuses them.
        """
        found = self.found
        specs, of_model = found.specs
        tensors, rows = fitting_inputs(inputs, specs, found.is_batched, self.name)
        tensors = {each.name: tensors[each.name].astype(each.dtype, copy=False) for each in specs}
        with self._turn:
            outputs = outputs_by_name(found.model, self._session, tensors, of_model)
        if rows is None and found.is_batched:
            outputs = {name: each[0] for name, each in outputs.items()}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def probabilities(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return class probabilities, ``(N, classes)``; raise ModelSourceError without classes."""
        if not self.class_names:
            raise ModelSourceError(
                f"{self.name} predicts numbers, not classes; expected a classifier, or a call of "
                f"predict. The classes of an ONNX file are named by labels=FILE"
            )
        outputs: NDArray[np.float32] = self.predict(inputs)
        if not self.found.has_logits:
            return outputs
        return softmax(np.atleast_2d(outputs)).reshape(outputs.shape, copy=False)

    def classify(self, image: ImageSource | NDArray[np.uint8], top: int = 5) -> list[Prediction]:
        """Return the ``top`` likeliest classes of an image, the likeliest first.

        ``image`` is a path, the bytes of a file, or pixels: (H, W), (H, W, 1) or (H, W, 3) uint8.
        Raise ImageError, and ModelSourceError if the model takes no images.
        """
        (answer,) = self.classify_each([image], top)
        if isinstance(answer, DistNetError):
            raise answer
        return answer

    def classify_each(
        self, images: Iterable[ImageSource | NDArray[np.uint8]], top: int = 5
    ) -> Iterator[ClassifiedImage]:
        """Yield the result of ``classify`` for each image; an unusable image yields its error.

        A few images are in memory at a time. Equally likely classes keep their order.
        """
        found = self.found
        if not (found.labels and found.takes_images):
            what = "predicts numbers, not classes" if not found.labels else "takes no images"
            raise ModelSourceError(
                f"{self.name} {what}: it has inputs of {found.model.input_dtype}"
                f"{list(found.model.input_shape)}; expected rows of such inputs, in a .npy or .csv "
                f"file, or in Python: dist_net.load(MODEL).predict(INPUTS)"
            )
        fit, waiting = ImageInputs(found.model, fitting=found.fitting).fit, iter(images)
        while batch := list(islice(waiting, IMAGES_AT_ONCE)):
            inputs: list[NDArray[Any] | ImageError] = []
            for image in batch:
                try:
                    inputs.append(fit(image))
                except ImageError as error:
                    inputs.append(error)
            usable = [each for each in inputs if not isinstance(each, ImageError)]
            rows = iter([*self.probabilities(np.stack(usable))] if usable else [])
            for image, each in zip(batch, inputs, strict=True):
                if isinstance(each, ImageError):
                    yield each
                elif np.isfinite(row := next(rows)).all():
                    yield top_predictions(row, found.labels, top)
                else:
                    yield NotFiniteError(
                        f"{name_of(image)}: the net's outputs are not finite; expected "
                        f"probabilities. The weights are too large, or belong to another net"
                    )

    def evaluate(
        self,
        inputs: Values | None = None,
        targets: Values | None = None,
        *,
        progress: Progress | None = None,
    ) -> Evaluation:
        """Return the model's loss and accuracy on ``inputs`` and ``targets``.

        The default is the run's own test samples, downloaded if necessary and reported to
        ``progress``. A run on a folder without test/ returns its figures out of fold. Raise
        ModelSourceError for a model that has no samples, DatasetError for samples that do not fit.
        """
        if inputs is None:
            return self._evaluate_own(progress)
        if targets is None:
            raise DatasetError("evaluate has no targets; expected evaluate(inputs, targets)")
        model, weights = self.found.model, self.found.weights()
        if isinstance(model, ForeignModel):  # it has no loss, so its probabilities are judged
            inputs, weights = self.probabilities(np.asarray(inputs)), np.empty(0, np.float32)
            loss = cross_entropy_of_probabilities
            model = Model(lambda each, _: each, inputs.shape[1:], loss, np.float32)
        dataset = dataset_of(model, inputs, targets)
        saved_recipe(model, self.name).recipe.require_dataset(dataset)
        return Evaluator(model, dataset)(weights)

    def _evaluate_own(self, progress: Progress | None) -> Evaluation:
        raise ModelSourceError(
            f"{self.name} has no test samples of its own; in Python: "
            f"dist_net.load(MODEL).evaluate(inputs, targets)"
        )


class Run(LoadedModel):
    """A run of training, and its model. ``path`` is the run directory, or a checkpoint file.

    ``report`` has the keys of ``dist-net train --json``. ``history`` has a result per evaluation,
    which several short epochs share: its loss and accuracy are means of the training since the
    previous evaluation, its ``validation`` is on the test samples. A loaded run has neither.
    """

    def __init__(
        self,
        source: RunFiles,
        engine: str = NUMPY,
        report: Mapping[str, Any] | None = None,
        history: Sequence[EpochResult] = (),
    ) -> None:
        super().__init__(source, str(source.path), engine)
        self._files, self.path = source, source.path
        self.report, self.history = dict(report or {}), History(history)

    @cached_property
    def contents(self) -> tuple[LoadedRecipe, Checkpoint]:
        """The recipe and the checkpoint, read once; raise the errors of ``load``."""
        return self._files.contents()

    @cached_property
    def found(self) -> FoundModel:
        return computed_by(self._files.model_of(*self.contents), self._engine)

    @property
    def weights(self) -> Vector:
        return run_contents.calibrated_weights(*self.contents)

    def state_dict(self) -> Any:
        """Return the trained arrays by name, or what the recipe's ``state_dict`` makes of them.

        With ``dist_net.adapters`` they are the module's state dict, or the tree of parameters.
        """
        recipe = self.contents[0].recipe
        own = recipe.state_dict or recipe.layout.views
        return own(self.weights)

    def _evaluate_own(self, progress: Progress | None) -> Evaluation:
        loaded, _ = self.contents
        if (judged := run_contents.read_out_of_fold(self.path)) is not None:
            labels, answers, loss = judged
            return Evaluation(loss, len(labels), len(self.class_names), labels, answers)
        held_out = run_contents.read_held_out(self.path, loaded)
        dataset = held_out or loaded.recipe.load_dataset(progress)
        evaluation = evaluate_recipe(loaded.recipe, dataset)(self.weights)
        if evaluation is None:
            raise ModelSourceError(
                f"the recipe of {self.path} has no evaluate function and no network; expected one"
            )
        return evaluation


@refusing_long_names()
def load(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    labels: str | Path | None = None,
    trust_recipe: bool = False,
    engine: str = NUMPY,
) -> LoadedModel:
    """Return a model that is ready to compute, from any MODEL of the commands predict and serve.

    They are a run's directory (the result is a ``Run``), a checkpoint, a file of ``Model.save``, an
    .onnx file, the name of a published classifier, which is downloaded if necessary, a .cfg file
    with ``weights`` and ``labels``, and the address or join token of a run in training, whose
    current weights are read. ``labels`` is a file with the name of a class per line; options may
    follow MODEL as for ``serve``: "net.onnx,labels=FILE". With ``engine`` "onnxruntime", ONNX
    Runtime computes models of dist_net too.

    A run's own ``recipe.py`` is Python code, which runs only if the user trusts it, for example by
    ``trust_recipe``, the ``--trust-recipe`` of the commands. Raise BadInputError if the model does
    not exist, is damaged, or its recipe is not trusted, and the errors of downloading.
    """
    for name, path in {"model": model, "weights": weights, "labels": labels}.items():
        if not isinstance(path, str | Path | None) or "\0" in str(path):
            raise SettingError(
                f"{name}: {type(path).__name__} {path!r:.60}; expected a path, a name"
            )
    files = (None if each is None else Path(each) for each in (weights, labels))
    (named,) = parse_pool_sources([str(model)], *files)
    with FetchProgress(plain_console()) as progress:
        source = named.open(progress, trust_recipe=trust_recipe)
        try:
            if isinstance(source, RunFiles):
                run = Run(source, engine)
                if run.contents[0].recipe.network is not None:
                    run.found  # noqa: B018 - reads now
                return run
            loaded = LoadedModel(source, named.source, engine)
            loaded.found  # noqa: B018 - reads now
            return loaded
        except UntrustedRecipeError as error:
            error.add_note(f"in Python: dist_net.load({str(model)!r}, trust_recipe=True)")
            raise


def export_model(model: Model | LoadedModel, path: str | Path) -> None:
    """Write a model with its weights for other programs: to .onnx, .safetensors or .npz.

    Raise the errors of ``format_of`` and ``write_exported``, and ParameterError without weights.
    """
    file = Path(path)
    format = format_of(file, None, takes_images=False)
    if isinstance(model, LoadedModel):
        found = model.found
    elif isinstance(model, Model):
        weights = model.predictor.weights
        found = found_model(saved_recipe(model, file.stem), weights, model.class_names)
    else:
        raise SettingError(
            f"model of type {type(model).__name__}; expected a Model, or one that dist_net.load "
            f"returned"
        )
    write_exported(file, format, ExportedModel(file.stem, found, found.weights()))
