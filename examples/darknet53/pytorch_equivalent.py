"""Classify a photograph as ``classify.py`` does, in PyTorch. Needs: pip install -e '.[peers]'

python examples/darknet53/pytorch_equivalent.py PHOTO darknet53.weights
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from dist_net import images
from dist_net.nets import darknet

if len(sys.argv) != 3:
    sys.exit(__doc__)
photo, path = map(Path, sys.argv[1:])

numbers = torch.from_numpy(np.fromfile(path, np.float32, offset=20))  # after the header
taken = 0


def take(*shape: int) -> torch.Tensor:
    """Return the next numbers of the file."""
    global taken
    start, taken = taken, taken + int(np.prod(shape))
    return numbers[start:taken].reshape(shape)


def convolution(x: torch.Tensor, section: darknet.Section) -> torch.Tensor:
    """Apply a convolution with batch norm or a bias. The file stores the bias or shift first."""
    filters, size = section.integer("filters", 1), section.integer("size", 1)
    stride, padding = section.integer("stride", 1), size // 2 if section.flag("pad") else 0
    shift = take(filters)
    is_normalized = section.flag("batch_normalize")
    if is_normalized:
        scale, mean, variance = take(filters), take(filters), take(filters)
    x = functional.conv2d(x, take(filters, x.shape[1], size, size), None, stride, padding)
    if is_normalized:
        # Darknet adds 1e-6 to the deviation, where PyTorch adds an epsilon to the variance.
        deviation_squared = (variance.sqrt() + 1e-6) ** 2
        x = functional.batch_norm(x, mean, deviation_squared, scale, shift, eps=0)
    else:
        x = x + shift[:, None, None]
    is_leaky = section.text("activation", "logistic") == "leaky"
    return functional.leaky_relu(x, 0.1) if is_leaky else x


configuration = darknet.published("darknet53").configuration()
height, width, _ = darknet.DarknetNetwork(configuration).input_shape
boxed = images.letterbox(images.load_image(photo), height, width)
x = torch.from_numpy(boxed.transpose(2, 0, 1)[np.newaxis].copy())  # PyTorch has channels first

outputs: list[torch.Tensor] = []
with torch.inference_mode():
    for section in configuration.layers:
        if section.kind == "convolutional":
            x = convolution(x, section)
        elif section.kind == "shortcut":
            x = x + outputs[section.integer("from", -1, -len(outputs))]
        elif section.kind == "avgpool":
            x = x.mean((2, 3), keepdim=True)
        elif section.kind == "softmax":
            x = x.flatten(1).softmax(1)
        outputs.append(x)
assert taken == len(numbers), "the weights are of another network"

labels = darknet.imagenet_labels()
probabilities, indices = x[0].topk(5)
for probability, index in zip(probabilities.tolist(), indices.tolist(), strict=True):
    print(f"{probability:7.2%}  {labels[index]}")
