"""The 8x8 handwritten digits of UCI, a dataset that needs no download.

``digits.npz`` is part of the package. It was made from scikit-learn's copy (its licence is in
``digits.licence.txt``) by::

    digits = sklearn.datasets.load_digits()
    images = (digits.images.astype(np.uint16) * 255 // 16).astype(np.uint8)
    split = sklearn.model_selection.train_test_split(
        images, digits.target.astype(np.uint8), test_size=360, stratify=digits.target,
        random_state=0)
    names = ("train_inputs", "test_inputs", "train_targets", "test_targets")
    np.savez_compressed("digits.npz", **dict(zip(names, split)))
"""

from importlib import resources

import numpy as np

from dist_net.data.dataset import Dataset

NAME = "digits"

CLASS_NAMES = tuple("0123456789")


def load() -> Dataset:
    """Return 1,437 digits to train on and 360 to test on, each class split in proportion.

    Images are ``(N, 8, 8)`` uint8; the original's 0 to 16 is scaled to 0 to 255.
    """
    packaged = resources.files("dist_net.data").joinpath("digits.npz")
    with packaged.open("rb") as file, np.load(file) as arrays:
        return Dataset(name=NAME, **arrays, class_names=CLASS_NAMES)
