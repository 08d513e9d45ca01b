"""Datasets, fetched, verified and memory-mapped, and the order in which an epoch visits them."""

from dist_net.data.named_datasets import CLASS_NAMES, DATASETS, dataset_named, default_cache_dir
from dist_net.data.published_files import FetchEvent, Progress
from dist_net.data.samples import (
    ArrayDataset,
    AugmentedSamples,
    Dataset,
    Samples,
    epoch_order,
    records,
)

# fmt: off
__all__ = [
    "CLASS_NAMES", "DATASETS", "ArrayDataset", "AugmentedSamples", "Dataset", "FetchEvent",
    "Progress", "Samples", "dataset_named", "default_cache_dir", "epoch_order", "records",
]
