"""The source of a net whose weights a package of the extra ``pretrained`` holds."""

from dataclasses import dataclass
from pathlib import Path

from dist_net.images.labels import read_labels
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import PublishedArchitecture
from dist_net.nets.sources.found_model import FoundModel


@dataclass(frozen=True)
class PretrainedNet:
    """EfficientNet-Lite0 with the published weights; ``labels`` replace ImageNet's."""

    labels: Path | None

    def read(self) -> FoundModel:
        """Return the net; raise MissingExtraError if its weights are not installed."""
        model, weights = lite0.model(), lite0.read_weights()
        names = lite0.imagenet_labels()
        if self.labels is not None:
            names = read_labels(self.labels, model.classes)
        architecture = PublishedArchitecture(lite0.NAME)
        return FoundModel.of(model, weights, architecture, names, lite0.FITTING)
