"""A client of a pool: one request, many in flight, and a failure."""

from dist_net import Client, fit_image
from dist_net.errors import DistNetError
from dist_net.images import load_image

with Client("http://127.0.0.1:8000") as client:
    try:
        for prediction in client.classify("clothes", "boot.png", top=2):
            print(prediction.label, prediction.probability)
        pending = [client.submit_image("clothes", name) for name in ("a.png", "b.png")]
        print([each.result().likeliest(1)[0].label for each in pending])
        image = fit_image(load_image("boot.png"), (28, 28), "pad")
        print(client.probabilities("clothes", image[None]).argmax(1))
        print(client.infer("clothes", image[None]).version)
    except DistNetError as error:
        print(f"refused: {error}")
