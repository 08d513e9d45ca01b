"""Asks a running inference pool what a picture shows: by dist_net's client, and by HTTP alone.

    dist-net serve                                     # in another terminal; wait for READY
    python examples/serving/client.py PHOTO [http://127.0.0.1:8000 tcp://127.0.0.1:8001]

The last two are what READY names. HTTP needs nothing but Python's standard library here, and would
be as short in any other language.
"""

import json
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from dist_net import Client

if len(sys.argv) not in (2, 4):
    sys.exit(__doc__)
photo = Path(sys.argv[1])
http, zmq = sys.argv[2:] or ("http://127.0.0.1:8000", "tcp://127.0.0.1:8001")

# 1. A picture over ZeroMQ. The file travels as it is; a worker decodes it and makes it fit.
with Client(zmq) as client:
    model = next(each for each in client.models() if each.takes_pictures)
    print(f"{model.name}: {model.classes} classes, inputs of {model.input_shape}")
    for each in client.classify(model.name, photo, top=3):
        print(f"{each.probability:7.2%}  {each.label}")

    # 2. Arrays, many at once: nobody waits for an answer before the next question is on its way,
    #    and the pool makes batches of what it has. Each answer says which version gave it.
    rows = np.zeros((32, *model.input_shape), np.uint8)
    pending = [client.submit(model.name, row) for row in rows]
    outputs = [each.result() for each in pending]
    versions = sorted({each.version for each in outputs})
    print(f"{len(outputs)} arrays, answered by version {versions}")

# 3. The picture over HTTP: the body is the file.
with urlopen(f"{http}/v1/models/{model.name}/classify?top=3", photo.read_bytes()) as reply:
    answer = json.load(reply)
for each in answer["predictions"]:
    print(f"{each['probability']:7.2%}  {each['label']}")

# 4. An array over HTTP, as the Open Inference Protocol has it.
tensor = {
    "name": "input",
    "datatype": model.input_datatype,
    "shape": [1, *model.input_shape],
    "data": rows[0].ravel().tolist(),
}
question = json.dumps({"inputs": [tensor]}).encode()
with urlopen(f"{http}/v2/models/{model.name}/infer", question) as reply:
    (output,) = json.load(reply)["outputs"]
is_same = np.allclose(output["data"], outputs[0].probabilities, atol=1e-6)
print(f"{output['name']} of {output['shape']}: {'the same' if is_same else 'different'} over HTTP")
