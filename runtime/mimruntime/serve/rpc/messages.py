"""The protocol's messages, after KServe's `open_inference_grpc.proto` and gRPC's `health.proto`.

They are in their own pool, so that a process can also import a client that defines the same names.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
_INFERENCE = {
    "ServerLiveRequest": [],
    "ServerLiveResponse": ["live bool"],
    "ServerReadyRequest": [],
    "ServerReadyResponse": ["ready bool"],
    "ModelReadyRequest": ["name string", "version string"],
    "ModelReadyResponse": ["ready bool"],
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": ["name string", "version string", "extensions string*"],
    "ModelMetadataRequest": ["name string", "version string"],
    "TensorMetadata": ["name string", "datatype string", "shape int64*"],
    "ModelMetadataResponse": [
        "name string", "versions string*", "platform string", "inputs TensorMetadata*", "outputs TensorMetadata*",
    ],
    "InferParameter": [
        "bool_param bool", "int64_param int64", "string_param string", "double_param double", "uint64_param uint64",
    ],
    "ParametersEntry": ["key string", "value InferParameter"],
    "InferTensorContents": [
        "bool_contents bool*", "int_contents int32*", "int64_contents int64*", "uint_contents uint32*",
        "uint64_contents uint64*", "fp32_contents float*", "fp64_contents double*", "bytes_contents bytes*",
    ],
    "InferInputTensor": [
        "name string", "datatype string", "shape int64*", "parameters ParametersEntry*", "contents InferTensorContents",
    ],
    "InferRequestedOutputTensor": ["name string", "parameters ParametersEntry*"],
    "ModelInferRequest": [
        "model_name string", "model_version string", "id string", "parameters ParametersEntry*",
        "inputs InferInputTensor*", "outputs InferRequestedOutputTensor*", "raw_input_contents bytes*",
    ],
    "InferOutputTensor": [
        "name string", "datatype string", "shape int64*", "parameters ParametersEntry*", "contents InferTensorContents",
    ],
    "ModelInferResponse": [
        "model_name string", "model_version string", "id string", "parameters ParametersEntry*",
        "outputs InferOutputTensor*", "raw_output_contents bytes*",
    ],
    # Triton's extensions, as far as this service fills them
    "StatisticDuration": ["count uint64", "ns uint64"],
    "InferStatistics": [
        "success StatisticDuration", "fail StatisticDuration", "queue StatisticDuration",
        "compute_input StatisticDuration", "compute_infer StatisticDuration", "compute_output StatisticDuration",
        "cache_hit StatisticDuration", "cache_miss StatisticDuration",
    ],
    "InferBatchStatistics": [
        "batch_size uint64", "compute_input StatisticDuration", "compute_infer StatisticDuration",
        "compute_output StatisticDuration",
    ],
    "ModelStatistics": [
        "name string", "version string", "last_inference uint64", "inference_count uint64", "execution_count uint64",
        "inference_stats InferStatistics", "batch_stats InferBatchStatistics*",
    ],
    "ModelStatisticsResponse": ["model_stats ModelStatistics*"],
    "ModelInput": ["name string", "data_type int32", "dims int64* =4", "optional bool =8"],
    "ModelOutput": ["name string", "data_type int32", "dims int64*"],
    "ModelInstanceGroup": ["name string", "count int32", "kind int32 =4"],
    "ModelDynamicBatching": ["preferred_batch_size int32*", "max_queue_delay_microseconds uint64"],
    "ModelParameter": ["string_value string"],
    "ModelParameterEntry": ["key string", "value ModelParameter"],
    "ModelConfig": [
        "name string", "platform string", "max_batch_size int32 =4", "input ModelInput* =5", "output ModelOutput* =6",
        "instance_group ModelInstanceGroup* =7", "dynamic_batching ModelDynamicBatching =11",
        "parameters ModelParameterEntry* =14", "backend string =17",
    ],
    "ModelConfigResponse": ["config ModelConfig"],
}  # fmt: skip
"""Fields with their numbers, counted from 1 if not given; `*` marks a repeated field.

As on the wire, a map is a list of entries and an enumeration is a number.
"""
_HEALTH = {"HealthCheckRequest": ["service string"], "HealthCheckResponse": ["status int32"]}
"""The status is an enumeration, which is a number on the wire."""
SERVING, NOT_SERVING = 1, 2
_ONE_OF = {"InferParameter": "parameter_choice"}
_TYPES = {
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
}


def _describe(package: str, name: str, fields: list[str]) -> DescriptorProto:
    found = DescriptorProto(name=name)
    if name in _ONE_OF:
        found.oneof_decl.add(name=_ONE_OF[name])
    for place, text in enumerate(fields, start=1):
        declared, _, number = text.partition(" =")
        field, kind = declared.rstrip("*").split()
        made = found.field.add(name=field, number=int(number or place))
        repeats = declared.endswith("*")
        made.label = FieldDescriptorProto.LABEL_REPEATED if repeats else FieldDescriptorProto.LABEL_OPTIONAL
        if kind in _TYPES:
            made.type = _TYPES[kind]
        else:
            made.type, made.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".{package}.{kind}"
        if name in _ONE_OF:
            made.oneof_index = 0
    return found


def _load() -> dict[str, Any]:
    """Return the classes of all messages by name."""
    pool, classes = DescriptorPool(), {}
    for package, messages in (("inference", _INFERENCE), ("grpc.health.v1", _HEALTH)):
        file = FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
        file.message_type.extend(_describe(package, name, fields) for name, fields in messages.items())
        pool.AddSerializedFile(file.SerializeToString())
        for name in messages:
            classes[name] = GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
    return classes


MESSAGES: dict[str, Any] = _load()
"""Class by name."""
