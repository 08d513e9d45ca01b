"""A classifier by what a person calls it: a published name, a run that trained it, a .cfg file."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from dist_net.cluster.trained import load_trained
from dist_net.darknet.classifier import Classifier, load_classifier
from dist_net.darknet.configuration import read_configuration
from dist_net.darknet.labels import imagenet_labels, read_labels
from dist_net.darknet.published import PUBLISHED
from dist_net.darknet.weights_download import fetch_weights
from dist_net.data import CLASS_NAMES, Progress
from dist_net.errors import ModelOptionError, NotACheckpointError, UnknownModelError
from dist_net.nn import cross_entropy_of_logits
from dist_net.nn.inference import prepare
from dist_net.recipe import Recipe

MODELS = (
    f"the name of a published classifier ({', '.join(PUBLISHED)}), the directory or checkpoint of "
    f"a run, or a .cfg file with --weights FILE and --labels FILE"
)


def classifier_called(
    model: str,
    weights: Path | None,
    labels: Path | None,
    progress: Progress,
    threads: int = 1,
) -> Classifier:
    """The classifier that ``model`` stands for; see MODELS. A name comes before a path.

    A published classifier's weights are fetched if need be, and ``progress`` called meanwhile,
    unless ``weights`` says where they are. ``labels``, a line for each class, take the place of
    the names that a published classifier or a run has itself. It is asked by ``threads`` threads.

    Raises UnknownModelError if it stands for nothing, ModelOptionError when ``weights`` or
    ``labels`` are missing or are of no use, and what reading each of the files raises.
    """
    if model in PUBLISHED:
        published = PUBLISHED[model]
        file = weights or fetch_weights(published, progress)
        names = labels or imagenet_labels()
        return load_classifier(published.configuration(), file, names, threads=threads)
    path = Path(model)
    if path.suffix == ".cfg":
        return _configured(path, weights, labels, threads)
    if not path.exists():
        close = get_close_matches(model, PUBLISHED, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected {MODELS}"
        raise UnknownModelError(f"no model {model!r}; {hint}")
    if weights is not None:
        raise ModelOptionError(
            f"{model} is a run, which has its own weights; expected no --weights"
        )
    return _trained(path, labels, progress, threads)


def _configured(path: Path, weights: Path | None, labels: Path | None, threads: int) -> Classifier:
    configuration = read_configuration(path)
    if weights is None or labels is None:
        raise ModelOptionError(
            f"{path} says how a net is built, not what it has learnt; expected --weights FILE and "
            f"--labels FILE too"
        )
    return load_classifier(configuration, weights, labels, threads=threads)


def _trained(path: Path, labels: Path | None, progress: Progress, threads: int) -> Classifier:
    try:
        loaded, checkpoint = load_trained(path)
    except NotACheckpointError as error:
        raise UnknownModelError(f"{path} is no model; expected {MODELS}") from error
    model = loaded.recipe.model
    names = _class_names(loaded.recipe, labels, progress)
    has_logits = model.loss is cross_entropy_of_logits
    prepared = prepare(model, checkpoint.weights)
    return Classifier(model, prepared, names, has_logits, threads=threads)


def _class_names(recipe: Recipe, labels: Path | None, progress: Progress) -> tuple[str, ...]:
    """The names in a file, or what the recipe's dataset calls its classes.

    A dataset of the user's own has to be made to know that.
    """
    if labels is not None:
        return read_labels(labels, recipe.model.classes)
    if isinstance(recipe.dataset, str):
        return CLASS_NAMES[recipe.dataset]
    return recipe.load_dataset(progress).class_names
