"""The Open Inference Protocol's messages over gRPC, as classes of protobuf from a table of fields.

The names, types and numbers are those of open_inference_grpc.proto and of Triton's further calls.
A table needs no compiler and no generated file. Nested messages are top-level, and maps are lists
of entries, which is the same on the wire. The syntax is proto2, which keeps whether a parameter of
value 0 or false was set.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
_TENSOR = "string name 1, string datatype 2, repeated int64 shape 3"
_CONTENTS = f"{_TENSOR}, repeated Entry parameters 4, InferTensorContents contents 5"
_MODEL = "string name 1, string version 2"
_INFER = "string model_name 1, string model_version 2, string id 3, repeated Entry parameters 4"
_FIELDS = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready 1",
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": "bool ready 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": f"{_MODEL}, repeated string extensions 3",
    "ModelMetadataRequest": _MODEL,
    "ModelMetadataResponse": "string name 1, repeated string versions 2, string platform 3, "
    "repeated TensorMetadata inputs 4, repeated TensorMetadata outputs 5",
    "TensorMetadata": _TENSOR,
    "ModelInferRequest": f"{_INFER}, repeated InferInputTensor inputs 5, "
    "repeated InferRequestedOutputTensor outputs 6, repeated bytes raw_input_contents 7",
    "ModelInferResponse": f"{_INFER}, repeated InferOutputTensor outputs 5, "
    "repeated bytes raw_output_contents 6",
    "ModelStreamInferResponse": "string error_message 1, ModelInferResponse infer_response 2",
    "ModelConfigRequest": _MODEL,
    "ModelConfigResponse": "ModelConfig config 1",
    "ModelConfig": "string name 1, string platform 2, int32 max_batch_size 4, "
    "repeated ModelInput input 5, repeated ModelOutput output 6, string backend 17",
    "ModelInput": "string name 1, int32 data_type 2, repeated int64 dims 4",
    "ModelOutput": "string name 1, int32 data_type 2, repeated int64 dims 3",
    "ModelStatisticsRequest": _MODEL,
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats 1",
    "ModelStatistics": f"{_MODEL}, uint64 last_inference 3, uint64 inference_count 4, "
    "uint64 execution_count 5, InferStatistics inference_stats 6, "
    "repeated InferBatchStatistics batch_stats 7",
    "InferStatistics": "Duration success 1, Duration fail 2, Duration queue 3, "
    "Duration compute_input 4, Duration compute_infer 5, Duration compute_output 6, "
    "Duration cache_hit 7, Duration cache_miss 8",
    "InferBatchStatistics": "uint64 batch_size 1, Duration compute_infer 3",
    "Duration": "uint64 count 1, uint64 ns 2",
    "InferInputTensor": _CONTENTS,
    "InferOutputTensor": _CONTENTS,
    "InferRequestedOutputTensor": "string name 1, repeated Entry parameters 2",
    "Entry": "string key 1, InferParameter value 2",
    "InferParameter": "bool bool_param 1, int64 int64_param 2, string string_param 3, "
    "double double_param 4, uint64 uint64_param 5",
    "InferTensorContents": "repeated bool bool_contents 1, repeated int32 int_contents 2, "
    "repeated int64 int64_contents 3, repeated uint32 uint_contents 4, "
    "repeated uint64 uint64_contents 5, repeated float fp32_contents 6, "
    "repeated double fp64_contents 7, repeated bytes bytes_contents 8",
}
# In the order of their numbers in Triton's configuration, from 1.
DATA_TYPES = [
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BYTES", "BF16"),
]
# The field of InferTensorContents for each data type; the other types have raw contents only.
CONTENTS = {
    **{"BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents"},
    **{"FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"},
    **{f"INT{bits}": "int_contents" for bits in (8, 16, 32)},
    **{f"UINT{bits}": "uint_contents" for bits in (8, 16, 32)},
}


def _message_classes() -> dict[str, Any]:
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="open_inference.proto", package=PACKAGE)
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for *repeated, kind, name, number in (each.split() for each in fields.split(", ") if each):
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            field = described.field.add(name=name, number=int(number), label=label)
            if kind in _FIELDS:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    found = {name: pool.FindMessageTypeByName(f"{PACKAGE}.{name}") for name in _FIELDS}
    return {name: message_factory.GetMessageClass(each) for name, each in found.items()}


MESSAGES = _message_classes()
"""The class of each message by its name."""
