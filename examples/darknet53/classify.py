"""Classify a photograph with Darknet-53, which knows a thousand classes.

    python examples/darknet53/classify.py PHOTO [darknet53.weights]

Each step from the file to the name of the class. The short form is::

    print(dist_net.load("darknet53").classify(photo))

or on the command line: dist-net predict darknet53 PHOTO
"""

import sys
from pathlib import Path

import numpy as np

from dist_net import images
from dist_net.nets import darknet
from dist_net.nn import Model, Predictor

if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
photo, *given = map(Path, sys.argv[1:])

# 1. The network. Darknet describes a net by a list of sections, one for each layer. This one has 52
#    convolutions in residual blocks, a mean over the remaining map, and a last layer with a
#    number for each class.
published = darknet.published("darknet53")
configuration = published.configuration()
network = darknet.DarknetNetwork(configuration)
print(f"{published.title}: {len(configuration.layers)} layers, inputs of {network.input_shape}")

# 2. The weights, trained for weeks on ImageNet's 1.2 million photographs. The file contains only
#    numbers, layer after layer, so it must end exactly where the network does.
path = given[0] if given else darknet.fetch_weights(published, progress=print)
weights = darknet.read_weights(path, network)
print(f"{len(weights):,} numbers in {path}")

# 3. The photograph: decoded, turned upright, and scaled to fit into 256 by 256 pixels, with grey
#    bars around it. Each channel is a number from 0 to 1.
pixels = images.load_image(photo)
height, width, _ = network.input_shape
boxed = images.letterbox(pixels, height, width)
print(f"{photo}: {pixels.shape[1]} by {pixels.shape[0]} pixels")

# 4. The answer: a probability for each of the thousand classes. A model takes batches of images,
#    and this is a batch of one.
model = Model(network, network.input_shape, input_dtype=np.float32)
(probabilities,) = Predictor(model, weights)(boxed[np.newaxis])

# 5. The names of the five most probable classes.
labels = darknet.imagenet_labels()
for index in np.argsort(-probabilities)[:5]:
    print(f"{probabilities[index]:7.2%}  {labels[index]}")
