"""Convert between gRPC messages and the records of KServe's protocol over HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from mimruntime.serve.problems import Problem
from mimruntime.serve.protocols.schemas_kserve import InferRequest, ModelMetadata
from mimruntime.serve.protocols.tensors import pack_bytes
from mimruntime.serve.rpc.messages import MESSAGES
from mimruntime.serve.rpc.wire import INFER_REQUEST, check_fields

_DATA_TYPES = {"TYPE_UINT8": 2, "TYPE_FP32": 11, "TYPE_STRING": 13}
_KINDS = {"KIND_GPU": 1, "KIND_CPU": 2}
"""Numbers of Triton's enumeration values."""
_FIELDS = 64
_FIELDS_PER_ITEM = 2


def read_infer(message: bytes, max_items: int) -> tuple[str, InferRequest, bytes]:
    """Return the model's name, the request, and the raw contents of its one input.

    Raises:
        Problem: 400 for an invalid message, or contents that come twice or are missing; 413 for too many fields; 422 for a
            message that does not match the schema.

    """
    check_fields(message, INFER_REQUEST, _FIELDS + _FIELDS_PER_ITEM * max_items)
    try:
        asked = MESSAGES["ModelInferRequest"].FromString(message)
    except Exception as error:  # protobuf's class of error depends on its build
        raise Problem(400, "malformed", "the body is not a message of the protocol") from error
    if asked.model_version not in {"", "1"}:
        raise Problem(404, "model_not_found", f"model '{asked.model_name}' has only version 1")
    raw = _contents(asked)
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": [*tensor.shape],
            "parameters": {"binary_data_size": len(raw)},
        }
        for tensor in asked.inputs
    ]
    document = {
        "id": asked.id or None,
        "inputs": inputs,
        # Answers over gRPC have only raw bytes, also where an output asks for others.
        "outputs": [
            {"name": each.name, "parameters": _parameters(each.parameters) | {"binary_data": True}}
            for each in asked.outputs
        ],
        "parameters": _parameters(asked.parameters) | {"binary_data_output": True},
    }
    try:
        return asked.model_name, msgspec.convert(document, InferRequest), raw
    except msgspec.ValidationError as error:
        raise Problem(422, "schema", str(error).replace("$.", "")) from None


def write_infer(header: dict[str, Any], raws: list[bytes]) -> bytes:
    """Return the answer with the header of the HTTP answer, and all outputs as raw bytes."""
    return _bytes(
        MESSAGES["ModelInferResponse"](
            model_name=header["model_name"],
            model_version=header["model_version"],
            id=header.get("id") or "",
            parameters=[{"key": key, "value": {"string_param": text}} for key, text in header["parameters"].items()],
            outputs=[{name: tensor[name] for name in ("name", "datatype", "shape")} for tensor in header["outputs"]],
            raw_output_contents=raws,
        )
    )


def write_metadata(about: ModelMetadata) -> bytes:
    """Return a model's metadata; the protocol has no field for parameters here."""
    fields = about.model_dump(include={"name", "versions", "platform", "inputs", "outputs"})
    return _bytes(MESSAGES["ModelMetadataResponse"](**fields))


def write_config(config: dict[str, Any]) -> bytes:
    """Return Triton's configuration; see `mimruntime.serve.protocols.kserve_about.configuration`."""
    tensors = {
        side: [{**tensor, "data_type": _DATA_TYPES[tensor["data_type"]]} for tensor in config[side]]
        for side in ("input", "output")
    }
    groups = [{**group, "kind": _KINDS[group["kind"]]} for group in config["instance_group"]]
    parameters = [{"key": key, "value": value} for key, value in config["parameters"].items()]
    return write("ModelConfigResponse", config=config | tensors | {"instance_group": groups, "parameters": parameters})


def write(kind: str, /, **fields: object) -> bytes:
    """Return the message `kind` with these fields."""
    return _bytes(MESSAGES[kind](**fields))


def read_name(message: bytes) -> str:
    """Return the model that a request names."""
    try:
        return str(MESSAGES["ModelReadyRequest"].FromString(message).name)
    except Exception as error:  # as above
        raise Problem(400, "malformed", "the body is not a message of the protocol") from error


def _contents(asked: Any) -> bytes:
    """Return the contents of an input as raw bytes, in whichever field they came."""
    typed = asked.inputs[0].contents if len(asked.inputs) else None
    given: list[bytes] = [*asked.raw_input_contents]
    if typed is not None and typed.bytes_contents:
        given.append(pack_bytes(typed.bytes_contents))
    if typed is not None and typed.uint_contents:
        numbers = np.array(typed.uint_contents, np.uint32)
        if numbers.max() > 255:
            raise Problem(400, "malformed", f"uint_contents has {numbers.max()}; pixels are 0 to 255")
        given.append(numbers.astype(np.uint8).tobytes())
    if len(given) != 1:
        raise Problem(400, "malformed", f"the contents of the input came {len(given)} times; send them once")
    return given[0]


def _parameters(entries: Iterable[Any]) -> dict[str, Any]:
    found = {}
    for entry in entries:
        choice = entry.value.WhichOneof("parameter_choice")
        if choice is not None:
            found[entry.key] = getattr(entry.value, choice)
    return found


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())
