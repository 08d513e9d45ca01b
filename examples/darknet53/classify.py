"""What does a photograph show? Darknet-53 knows a thousand answers.

    python examples/darknet53/classify.py PHOTO [darknet53.weights]

Step by step, from a file of pixels to a name. In short, it is::

    weights = darknet.fetch_weights(darknet.published("darknet53"), print)
    classifier = load_classifier(
        darknet.published("darknet53").configuration(), weights, darknet.imagenet_labels()
    )
    print(classifier.predict([photo]))

or on the command line: dist-net predict darknet53 PHOTO
"""

import sys
from pathlib import Path

import numpy as np

from dist_net import darknet, pictures
from dist_net.nn import Model, Predictor

if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
photo, *given = map(Path, sys.argv[1:])

# 1. The network. Darknet describes a net by a list of sections, one for each layer. This one has 52
#    convolutions in residual blocks, a mean over the map that is left, and a last layer with a
#    number for each class.
published = darknet.published("darknet53")
configuration = published.configuration()
network = darknet.DarknetNetwork(configuration)
print(f"{published.title}: {len(configuration.layers)} layers, inputs of {network.input_shape}")

# 2. The weights, trained for weeks on ImageNet's 1.2 million photographs. The file is nothing but
#    numbers, layer after layer; so it has to end exactly where the network does.
path = given[0] if given else darknet.fetch_weights(published, progress=print)
weights = darknet.read_weights(path, network)
print(f"{len(weights):,} numbers in {path}")

# 3. The photograph: decoded, turned upright, shrunk into 256 by 256 pixels with its proportions
#    kept and grey bars around it. Each channel is a number from 0 to 1.
pixels = pictures.load_image(photo)
height, width, _ = network.input_shape
boxed = pictures.letterbox(pixels, height, width)
print(f"{photo}: {pixels.shape[1]} by {pixels.shape[0]} pixels")

# 4. The answer: a probability for each of the thousand classes. A model takes batches of pictures,
#    and this is a batch of one.
model = Model(network, network.input_shape, input_dtype=np.float32)
(probabilities,) = Predictor(model, weights)(boxed[np.newaxis])

# 5. The five likeliest, by name.
labels = darknet.imagenet_labels()
for index in np.argsort(-probabilities)[:5]:
    print(f"{probabilities[index]:7.2%}  {labels[index]}")
