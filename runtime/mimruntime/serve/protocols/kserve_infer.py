"""Inference by KServe's protocol, for HTTP and gRPC: the options of a request, and the tensors of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimruntime.serve.admission.queue import EmbeddingResult
from mimruntime.serve.execution.model import Model, Outcome
from mimruntime.serve.problems import Problem
from mimruntime.serve.protocols.answers import encoded
from mimruntime.serve.protocols.schemas_kserve import InferRequest, RequestedOutput
from mimruntime.serve.protocols.tensors import write_numbers, write_texts
from mimruntime.storage import Codec, Store

STORES: dict[str, Store] = {"FP32": "fp32", "FP16": "fp16", "INT8": "int8", "UINT8": "bits"}
"""Stored forms of vectors by the protocol's data types; UINT8 are bits, eight in a number."""
_EMBEDDING = RequestedOutput(name="embedding")


@dataclass(frozen=True, slots=True)
class Inference:
    """The model and options of a request.

    Attributes:
        model: the model that it names.
        asked: the request.
        outputs: the requested outputs; the embedding if it names none.
        codec: encodes its vectors.
        by_item: report the error of an image in an output `error`.

    """

    model: Model
    asked: InferRequest
    outputs: tuple[RequestedOutput, ...]
    codec: Codec
    by_item: bool

    @property
    def expected_space(self) -> str | None:
        """The embedding space that the request's parameters expect."""
        expected = self.asked.parameters.get("embedding_space")
        return None if expected is None else str(expected)

    def is_binary(self, output: RequestedOutput) -> bool:
        """Return whether an output is requested in binary."""
        wanted = output.parameters.get("binary_data")
        return bool(self.asked.parameters.get("binary_data_output", False) if wanted is None else wanted)


def read_request(model: Model, asked: InferRequest) -> Inference:
    """Check the options of `asked` and return them.

    Raises:
        Problem: 400 for an output or option that is unknown or not available, or for FP16 in JSON, which the protocol lacks.

    """
    outputs = tuple(asked.outputs) or (_EMBEDDING,)
    names = [output.name for output in outputs]
    if len({*names}) < len(names):
        raise Problem(400, "malformed", f"an output is requested twice: {', '.join(names[:4])}")
    if "selection" in names:
        model.check_selection(param="outputs")
    embedding = next((output for output in outputs if output.name == "embedding"), _EMBEDDING)
    datatype, dimensions = embedding.parameters.get("datatype", "FP32"), embedding.parameters.get("dimensions")
    if datatype not in STORES:
        raise Problem(400, "malformed", f"outputs[0] has the datatype '{datatype}'; expected {', '.join(STORES)}")
    if dimensions is not None and type(dimensions) is not int:
        raise Problem(400, "malformed", f"outputs[0] has '{dimensions}' dimensions; expected a whole number")
    codec = model.codec(STORES[str(datatype)], dimensions, param="outputs[0]")
    inference = Inference(model, asked, outputs, codec, _by_item(asked))
    if datatype == "FP16" and not inference.is_binary(embedding):
        raise Problem(400, "malformed", "FP16 has no form in JSON; ask for it with binary_data")
    return inference


def write_answer(inference: Inference, outcomes: Sequence[Outcome]) -> tuple[dict[str, Any], list[bytes]]:
    """Return the JSON of the answer, and the bytes of each output in order; b"" for outputs in JSON."""
    about, codec = inference.model.about, inference.codec
    parameters: dict[str, str] = {"embedding_space": codec.space, "precision": about.precision}
    if codec.store != "fp32":
        parameters |= codec.labels()
    outputs = [_write_output(inference, output, outcomes) for output in inference.outputs]
    if inference.by_item:
        texts = [each.detail if isinstance(each, Problem) else "" for each in outcomes]
        outputs.append(write_texts("error", texts, binary=inference.is_binary(inference.outputs[0])))
    header = {
        **({"id": inference.asked.id} if inference.asked.id is not None else {}),
        "model_name": about.name,
        "model_version": "1",
        "outputs": [tensor for tensor, _ in outputs],
        "parameters": parameters,
    }
    return header, [raw for _, raw in outputs]


def _write_output(
    inference: Inference, output: RequestedOutput, outcomes: Sequence[Outcome]
) -> tuple[dict[str, Any], bytes]:
    binary, codec = inference.is_binary(output), inference.codec
    if output.name == "embedding":
        datatype = next(name for name, store in STORES.items() if store == codec.store)
        return write_numbers("embedding", encoded(codec, outcomes), datatype, binary=binary)
    weights = np.zeros((len(outcomes), *inference.model.manifest.backbone.grid), "<f4")
    for index, each in enumerate(outcomes):
        if isinstance(each, EmbeddingResult) and each.selection is not None:
            weights[index] = each.selection
    return write_numbers("selection", weights, "FP32", binary=binary)


def _by_item(asked: InferRequest) -> bool:
    wanted = asked.parameters.get("errors", "request")
    if wanted not in {"request", "item"}:
        raise Problem(400, "malformed", f"the parameter 'errors' is '{wanted}'; expected 'request' or 'item'")
    return wanted == "item"
