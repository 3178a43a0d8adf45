"""The contents of `config.pbtxt` for the graph, the preprocessing step and the ensemble of both.

Fields: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from mimruntime.manifest import Manifest, Port
from mimruntime.triton.pbtxt import Word
from mimruntime.triton.served_graph import GraphFile

Decode = Literal["threads", "gpu"]
"""What the preprocessing step decodes with, as in `mimruntime.Embedder.open`; Triton runs processes of its own."""

IMAGE, PIXELS = "image", "pixels"
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}
_QUEUE_MICROSECONDS = 5000
_DECODERS = 2
"""Preprocessing processes per instance of the graph; decoding is slower than a GPU."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the models.

    Attributes:
        instances: number of copies of the graph, per GPU if there are GPUs.
        max_batch: largest batch.
        gpus: ids of the GPUs; empty means the CPU.
        decode: what the preprocessing step decodes with: threads or an NVIDIA GPU.

    """

    instances: int
    max_batch: int
    gpus: tuple[int, ...] = ()
    decode: Decode = "threads"


def names(manifest: Manifest) -> dict[str, str]:
    """Return the names of the three models."""
    name = manifest.name
    return {"graph": name, "preprocess": f"{name}-preprocess", "ensemble": f"{name}-images"}


def graph_config(manifest: Manifest, file: GraphFile, options: Options) -> dict[str, Any]:
    """Return the configuration of the graph: pixels in, embedding (and selection) out."""
    return {
        "name": names(manifest)["graph"],
        "backend": file.backend,
        "default_model_filename": file.name,
        **_common(manifest, options.max_batch),
        "input": [_port(port) for port in manifest.graph.inputs],
        "output": [_port(port) for port in manifest.graph.outputs],
        "dynamic_batching": _batching(options.max_batch),
        "instance_group": _instances(options.instances, options.gpus),
        "model_warmup": [_warmup(manifest.graph.inputs[0], size) for size in sorted({file.least, options.max_batch})],
    }


def preprocess_config(manifest: Manifest, options: Options) -> dict[str, Any]:
    """Return the configuration of the preprocessing step: encoded file in, pixels out."""
    common = _common(manifest, options.max_batch)
    spec = msgspec.json.encode(manifest.preprocess).decode()
    return {
        "name": names(manifest)["preprocess"],
        "backend": "python",
        **common,
        "parameters": [*common["parameters"], _parameter("preprocess", spec), _parameter("decode", options.decode)],
        "input": _image_input(),
        "output": [_port(manifest.graph.inputs[0])],
        "dynamic_batching": _batching(options.max_batch),
        "instance_group": _instances(options.instances, options.gpus)
        if options.decode == "gpu"
        else _instances(options.instances * _DECODERS * max(1, len(options.gpus)), ()),
    }


def ensemble_config(manifest: Manifest, options: Options) -> dict[str, Any]:
    """Return the configuration of the ensemble of both: encoded file in, embedding (and selection) out."""
    called = names(manifest)
    outputs = [port.name for port in manifest.graph.outputs]
    return {
        "name": called["ensemble"],
        "platform": "ensemble",
        **_common(manifest, options.max_batch),
        "input": _image_input(),
        "output": [_port(port) for port in manifest.graph.outputs],
        "ensemble_scheduling": {
            "step": [
                _step(called["preprocess"], {IMAGE: IMAGE}, {PIXELS: PIXELS}),
                _step(called["graph"], {PIXELS: PIXELS}, {name: name for name in outputs}),
            ]
        },
    }


def _common(manifest: Manifest, max_batch: int) -> dict[str, Any]:
    return {
        "max_batch_size": max_batch,
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": [
            _parameter("embedding_space", manifest.embedding_space),
            _parameter("precision", manifest.graph.precision),
            _parameter("license_of_weights", manifest.backbone.license),
        ],
    }


def _parameter(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"string_value": value}}


def _port(port: Port) -> dict[str, Any]:
    """Return the description of a tensor without its batch dimension, which Triton adds."""
    return {"name": port.name, "data_type": Word(_TYPES[port.dtype]), "dims": list(port.shape[1:])}


def _image_input() -> list[dict[str, Any]]:
    return [{"name": IMAGE, "data_type": Word("TYPE_STRING"), "dims": [1]}]


def _batching(max_batch: int) -> dict[str, Any]:
    return {"preferred_batch_size": [max_batch], "max_queue_delay_microseconds": _QUEUE_MICROSECONDS}


def _instances(count: int, gpus: tuple[int, ...]) -> list[dict[str, Any]]:
    if not gpus:
        return [{"count": count, "kind": Word("KIND_CPU")}]
    return [{"count": count, "kind": Word("KIND_GPU"), "gpus": list(gpus)}]


def _warmup(port: Port, batch: int) -> dict[str, Any]:
    tensor = {"data_type": Word(_TYPES[port.dtype]), "dims": list(port.shape[1:]), "random_data": True}
    return {"name": f"batch of {batch}", "batch_size": batch, "inputs": [{"key": port.name, "value": tensor}]}


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Any]:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }
