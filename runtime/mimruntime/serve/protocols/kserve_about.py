"""Describe a model for KServe's protocol and Triton's extensions: its tensors and its configuration."""

from __future__ import annotations

from typing import Any

from mimruntime.engines.base import EMBEDDING, SELECTION
from mimruntime.serve.execution.model import Model
from mimruntime.serve.protocols.schemas_kserve import ModelMetadata, TensorMetadata


def describe_model(model: Model) -> ModelMetadata:
    """Return the names, types and shapes of a model's tensors."""
    edge = model.manifest.preprocess.size
    outputs = [TensorMetadata(name=EMBEDDING, datatype="FP32", shape=[-1, model.about.dim])]
    if model.has_selection:
        grid = model.manifest.backbone.grid
        outputs.append(TensorMetadata(name=SELECTION, datatype="FP32", shape=[-1, *grid]))
    return ModelMetadata(
        name=model.about.name,
        versions=["1"],
        platform=model.about.engine.partition(" ")[0],
        inputs=[
            TensorMetadata(name="pixels", datatype="UINT8", shape=[-1, edge, edge, 3]),
            TensorMetadata(name="image", datatype="BYTES", shape=[-1]),
        ],
        outputs=outputs,
        parameters={"embedding_space": model.about.space, "precision": model.about.precision},
    )


def configuration(model: Model, max_items: int, max_delay_ms: float) -> dict[str, Any]:
    """Return Triton's `ModelConfig`: the tensors with limits; a request has one of the two inputs."""
    about = describe_model(model)
    on_cpu = model.about.provider == "cpu"
    return {
        "name": about.name,
        "platform": about.platform,
        "backend": "mimexport",
        "max_batch_size": max_items,
        "input": [
            {
                "name": tensor.name,
                "data_type": _type(tensor),
                "dims": tensor.shape[1:] or [1],
                "optional": True,
            }
            for tensor in about.inputs
        ],
        "output": [
            {"name": tensor.name, "data_type": _type(tensor), "dims": tensor.shape[1:]} for tensor in about.outputs
        ],
        "instance_group": [{"name": about.name, "kind": "KIND_CPU" if on_cpu else "KIND_GPU", "count": 1}],
        "dynamic_batching": {
            "preferred_batch_size": [*model.about.batch_sizes],
            "max_queue_delay_microseconds": int(max_delay_ms * 1000),
        },
        "parameters": {name: {"string_value": value} for name, value in about.parameters.items()},
    }


def _type(tensor: TensorMetadata) -> str:
    return "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
