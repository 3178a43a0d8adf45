"""Preprocessing model for Triton's Python backend: encoded image files to the graph's pixels, as in `mimruntime`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np

from mimruntime.cpus import available_cpus
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import ImageError
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare
from mimruntime.serve.settings import DEFAULT_FORMATS


class TritonPythonModel:
    """Preprocessing from `image` BYTES (B, 1) to `pixels` UINT8 (B, size, size, 3)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the preprocessing record from the parameter `preprocess` of the configuration."""
        spec = json.loads(args["model_config"])["parameters"]["preprocess"]["string_value"]
        self._spec = msgspec.json.decode(spec, type=Preprocess)
        self._pool = ThreadPoolExecutor(min(4, available_cpus()))
        self._budget = MemoryBudget()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response per request; a request with an invalid image gets an error response."""
        import triton_python_backend_utils as pb  # noqa: PLC0415 - exists inside Triton only

        answers = []
        for request in requests:
            files = pb.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
            try:
                pixels = np.stack(list(self._pool.map(self._prepare, files)))
            except ImageError as error:
                answers.append(pb.InferenceResponse(output_tensors=[], error=pb.TritonError(str(error))))
            else:
                answers.append(pb.InferenceResponse(output_tensors=[pb.Tensor("pixels", pixels)]))
        return answers

    def finalize(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, file: bytes) -> np.ndarray:
        return prepare(file, self._spec, self._budget, formats=DEFAULT_FORMATS)
