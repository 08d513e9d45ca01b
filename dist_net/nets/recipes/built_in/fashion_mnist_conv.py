"""Fashion-MNIST by a small convolutional network of Darknet's kind: 119,354 parameters.

Built from sections of a .cfg file: the Darknet program can run the trained net.
"""

from dist_net import autodiff
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import convolution, head, pool, section
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Lambda, Rescale, Sequential
from dist_net.optim import Adam, Cosine

SECTIONS = (
    section("net", height=28, width=28, channels=1),
    *(convolution(16, 3), pool()),
    *(convolution(32, 3), pool()),
    *(convolution(64, 3), convolution(32, 1), convolution(64, 3), pool()),
    convolution(128, 3),
    *head(pool_first=False, classes=10),
)
CONFIGURATION = parse_configuration("\n".join(SECTIONS), "fashion-mnist-conv")

recipe = Recipe(
    network=Sequential(
        Rescale(),
        Lambda(lambda images: autodiff.reshape(images, (*images.shape, 1))),
        DarknetNetwork(CONFIGURATION, logits=True),
    ),
    dataset="fashion-mnist",
    input_shape=(28, 28),
    optimizer=Adam(beta1=0.5),
    learning_rate=0.01,
    schedule=Cosine(),
    batch_size=64,
    epochs=10,
)
