"""A layer, a loss and a callback of one's own, trained by a cluster in threads."""

import dist_net
from dist_net import LocalCluster, Recipe, nn
from dist_net import autodiff as ad
from dist_net.data import dataset_named


class Scaled:
    """A layer with one trained factor."""

    def __call__(self, x: ad.Expression, scope: nn.Scope) -> ad.Expression:
        return x * scope.parameter("factor", (1,), nn.ones)


def loss(logits: ad.Expression, labels: ad.Expression) -> ad.Expression:
    return 2 * nn.cross_entropy_of_logits(logits, labels)


digits = dataset_named("digits")
network = nn.Sequential(nn.Rescale(), nn.Flatten(), Scaled(), nn.Dense(10))
recipe = Recipe(network, lambda: digits, (8, 8), loss=loss, epochs=2)
with LocalCluster(recipe, workers=2) as cluster:
    samples: int = cluster.wait()["samples"]
    model = dist_net.nn.Model(network, (8, 8), loss)
    model.weights = cluster.snapshot().weights
print(samples, model.predict(digits.test_inputs[:1]).shape)
