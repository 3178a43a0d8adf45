"""Preprocessing model for Triton's Python backend: encoded image files to the graph's pixels, as in `mimruntime`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import numpy as np

from mimruntime.cpus import available_cpus
from mimruntime.decoding.budget import DEFAULT_MB, MemoryBudget
from mimruntime.errors import ImageError
from mimruntime.gpu.coded import GpuJpeg, read_for_gpu
from mimruntime.gpu.decoder import GpuDecoder
from mimruntime.gpu.opening import open_gpu_decoder
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare
from mimruntime.serve.settings import DEFAULT_FORMATS


class TritonPythonModel:
    """Preprocessing from `image` BYTES (B, 1) to `pixels` UINT8 (B, size, size, 3)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters `preprocess`, a record, and `decode` of the configuration."""
        config = json.loads(args["model_config"])
        given = {name: value["string_value"] for name, value in config["parameters"].items()}
        spec = msgspec.json.decode(given["preprocess"], type=Preprocess)
        common: dict[str, Any] = {"spec": spec, "budget": MemoryBudget(), "formats": DEFAULT_FORMATS}
        self._shape = spec.size, spec.size, 3
        self._pool = ThreadPoolExecutor(min(4, available_cpus()))
        self._read: Callable[..., GpuJpeg | np.ndarray | None] = partial(prepare, **common)
        self._gpu: GpuDecoder | None = None
        if given["decode"] == "gpu":
            most_bytes = DEFAULT_MB * 1_000_000 // config["max_batch_size"]
            self._gpu = open_gpu_decoder(self._read)
            self._read = partial(read_for_gpu, most_bytes=most_bytes, **common)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response per request; a request with an invalid image gets an error response."""
        import triton_python_backend_utils as pb  # noqa: PLC0415 - exists inside Triton only

        batches = [pb.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1) for request in requests]
        found = iter(self._pixels([file for files in batches for file in files]))
        answers = []
        for files in batches:
            own = list(itertools.islice(found, len(files)))
            errors = [one for one in own if isinstance(one, ImageError)]
            if errors:
                answers.append(pb.InferenceResponse(output_tensors=[], error=pb.TritonError(str(errors[0]))))
            else:
                pixels = np.stack([one for one in own if isinstance(one, np.ndarray)])
                answers.append(pb.InferenceResponse(output_tensors=[pb.Tensor("pixels", pixels)]))
        return answers

    def finalize(self) -> None:
        """Stop the threads and close the decoder of the GPU."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._gpu is not None:
            self._gpu.close()

    def _pixels(self, files: Sequence[bytes]) -> list[np.ndarray | ImageError]:
        """Return the pixels of every file, uint8 (size, size, 3), or its error."""
        pixels = np.empty((len(files), *self._shape), np.uint8)
        errors: list[ImageError | None] = [None] * len(files)

        def read(index: int) -> GpuJpeg | None:
            try:
                found = self._read(files[index], out=pixels[index])
            except ImageError as error:
                errors[index] = error
                return None
            return found if isinstance(found, GpuJpeg) else None

        coded = list(self._pool.map(read, range(len(files))))
        if self._gpu is None:
            return [pixels[index] if error is None else error for index, error in enumerate(errors)]
        with self._gpu.batch(pixels, coded, errors) as filled:
            self._gpu.download(filled.address, pixels[: filled.count])
        rows = iter(pixels)
        return [next(rows) if error is None else error for error in errors]
