"""Classify an image with a running pool: with dist_net's client, and with urllib alone.

    dist-net serve                                     # in another terminal; wait for READY
    python examples/serving/client.py PHOTO [http://127.0.0.1:8000]

The last is the address that READY prints. HTTP needs only Python's standard library, and is
as short in other languages.
"""

import json
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from dist_net import Client

if len(sys.argv) not in (2, 3):
    sys.exit(__doc__)
photo = Path(sys.argv[1])
(address,) = sys.argv[2:] or ("http://127.0.0.1:8000",)

# 1. An image. The file is sent unchanged; a worker decodes and resizes it.
with Client(address) as client:
    model = next(each for each in client.models() if each.takes_images)
    print(f"{model.name}: {model.classes} classes, inputs of {model.input_shape}")
    for each in client.classify(model.name, photo, top=3):
        print(f"{each.probability:7.2%}  {each.label}")

    # 2. Many arrays at once: requests are sent before the first result is read, so the pool can
    #    form batches. Each result names the version of the model.
    rows = np.zeros((32, *model.input_shape), np.uint8)
    pending = [client.submit(model.name, row) for row in rows]
    outputs = [each.result() for each in pending]
    versions = sorted({each.version for each in outputs})
    print(f"{len(outputs)} arrays, answered by version {versions}")

# 3. The image without the client: the body is the file.
with urlopen(f"{address}/v1/models/{model.name}/classify?top=3", photo.read_bytes()) as reply:
    answer = json.load(reply)
for each in answer["predictions"]:
    print(f"{each['probability']:7.2%}  {each['label']}")

# 4. An array, in the format of the Open Inference Protocol.
tensor = {
    "name": "input",
    "datatype": model.input_datatype,
    "shape": [1, *model.input_shape],
    "data": rows[0].ravel().tolist(),
}
question = json.dumps({"inputs": [tensor]}).encode()
with urlopen(f"{address}/v2/models/{model.name}/infer", question) as reply:
    (output,) = json.load(reply)["outputs"]
is_same = np.allclose(output["data"], outputs[0].probabilities, atol=1e-6)
print(f"{output['name']} of {output['shape']}: {'the same' if is_same else 'different'} over HTTP")
