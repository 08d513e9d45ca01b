"""A classifier by what a person calls it: a published name, a run that trained it, a .cfg file."""

from __future__ import annotations

from pathlib import Path

from dist_net.data import Progress
from dist_net.models.classifier import Classifier
from dist_net.models.sources import source_called


def classifier_called(
    model: str,
    weights: Path | None,
    labels: Path | None,
    progress: Progress,
    threads: int = 1,
    trust_recipe: bool = False,
) -> Classifier:
    """The classifier that ``model`` stands for, asked by ``threads`` threads.

    See ``source_called`` for what the arguments mean. Raises what that, reading the model, and
    ``Classifier`` raise.
    """
    found = source_called(model, weights, labels, progress, trust_recipe=trust_recipe).read()
    return Classifier(
        found.model,
        found.prepared,
        found.labels,
        found.has_logits,
        threads=threads,
        fitting=found.fitting,
    )
