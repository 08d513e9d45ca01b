"""Messages of gRPC to and from the JSON objects whose meaning ``open_inference`` decides.

A request becomes an object with raw tensors behind it, as in HTTP's binary extension, so both doors
accept and refuse the same. Every output is requested raw.
"""

from typing import Any

from google.protobuf.message import DecodeError

from dist_net.errors import BadRequestError
from dist_net.serving.grpc.grpc_messages import CONTENTS, MESSAGES
from dist_net.serving.http.json_tensors import SLICE_ELEMENTS, Sliced, pack_elements, shown
from dist_net.serving.http.open_inference import (
    InferenceOutcome,
    ResponseForm,
    bytes_of_elements,
    meaning_of,
    response_of,
)
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import InferenceRequest


def read_message(
    message: Any, model: ModelDescription, version: int | None
) -> Sliced[tuple[list[InferenceRequest], ResponseForm]]:
    """Return the meaning of a ModelInferRequest; the counterpart of ``read_request``."""
    raws: list[bytes] = list(message.raw_input_contents)
    typed = [each.name for each in message.inputs if each.contents.ByteSize()]
    if raws and (typed or len(raws) != len(message.inputs)):
        raise BadRequestError(
            f"{len(raws)} raw_input_contents for {len(message.inputs)} inputs, and contents of "
            f"{shown(typed)}; expected raw contents of all inputs, or contents of all"
        )
    inputs = []
    for place, each in enumerate(message.inputs):
        if len(raws) == place:
            raws.append((yield from _packed_contents(each)))
        size = {"binary_data_size": len(raws[place])}
        inputs.append(
            {
                "name": each.name,
                "datatype": each.datatype,
                "shape": list(each.shape),
                "parameters": _parameters(each) | size,
            }
        )
    outputs = [
        {"name": each.name, "parameters": _parameters(each) | {"binary_data": True}}
        for each in message.outputs
    ]
    request = {
        "inputs": inputs,
        "outputs": outputs,
        "parameters": _parameters(message) | {"binary_data_output": True},
    }
    request |= {"id": message.id} if message.id else {}
    raw = raws[0] if len(raws) == 1 else b"".join(raws)
    return (yield from meaning_of(request, {}, memoryview(raw), model, version))


def _packed_contents(given: Any) -> Sliced[bytes]:
    """Return the raw bytes of an input's typed contents."""
    field = CONTENTS.get(given.datatype, "")
    others = [each.name for each, _ in given.contents.ListFields() if each.name != field]
    if others or not field:
        raise BadRequestError(
            f"the contents of {given.name} are {', '.join(others) or None}, of the type "
            f"{given.datatype!r}; expected {field or 'raw_input_contents'}"
        )
    elements = getattr(given.contents, field)
    if given.datatype == "BYTES":
        return bytes_of_elements(elements)
    packed = bytearray()
    for start in range(0, len(elements), SLICE_ELEMENTS):
        packed += pack_elements(elements[start : start + SLICE_ELEMENTS], given.datatype)
        yield
    return bytes(packed)


def _parameters(owner: Any) -> dict[str, Any]:
    """Return the parameters of a message; one without a value is None."""
    values = {each.key: each.value.ListFields() for each in owner.parameters}
    return {key: fields[-1][1] if fields else None for key, fields in values.items()}


def write_message(inference: InferenceOutcome) -> Sliced[Any]:
    """Return the ModelInferResponse of results that are all OK."""
    response, raws = yield from response_of(*inference[:4])
    outputs = [{**each, "parameters": ()} for each in response.pop("outputs")]
    return MESSAGES["ModelInferResponse"](**response, outputs=outputs, raw_output_contents=raws)


def parsed(name: str, content: bytes) -> Any:
    """Return a message from its bytes. Raise BadRequestError."""
    try:
        return MESSAGES[name].FromString(content)
    except DecodeError as error:
        raise BadRequestError(f"the message is no {name}: {error}") from error
