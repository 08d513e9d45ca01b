"""Images: decoding, fitting to a net's inputs, augmentation, and the names of classes."""

from dist_net.images.decoding import load_image
from dist_net.images.fitting import fit_image, letterbox
from dist_net.images.labels import Prediction, read_labels

__all__ = ["Prediction", "fit_image", "letterbox", "load_image", "read_labels"]
