"""Other ways to run the same weights, to compare speed with: torch, and timm's plain export."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mimexport.graph import quiet_exporter
from mimexport.references import seed_of
from mimexport.weights import load_model
from mimruntime.artifact import Artifact
from mimruntime.bench.measure import Peer
from mimruntime.cpus import available_cpus
from mimruntime.engines import onnxruntime, openvino
from mimruntime.engines.base import EMBEDDING, CpuEngineModule, Engine, Setting
from mimruntime.engines.options import CompileOptions
from mimruntime.errors import EngineError, OptionError


def open_peers(artifact: Artifact, weights: Path | None = None) -> Sequence[Peer]:
    """Return the peers of an artifact, created from the same weights.

    Raises:
        OptionError: the weights are not those of the artifact.
    """
    about = artifact.manifest.backbone
    size = artifact.manifest.preprocess.size
    loaded = load_model(about.model, weights=weights, random_seed=seed_of(artifact.manifest), size=size)
    if loaded.sha256 != about.weights_sha256:
        raise OptionError(
            f"the weights of {about.model} differ from those in {artifact.path}; give the right file with --weights"
        )
    model = PlainModel(loaded.model, loaded.config).eval()
    on_cpu = (
        Peer("torch eager fp32", lambda pixels: TorchEngine(model, pixels.shape[1:])),
        Peer("torch autocast bf16", lambda pixels: TorchEngine(model, pixels.shape[1:], torch.bfloat16)),
        Peer("timm export, onnxruntime", lambda pixels: _exported(model, pixels, onnxruntime)),
        Peer("timm export, openvino", lambda pixels: _exported(model, pixels, openvino)),
    )
    return (*on_cpu, *_on_gpu(model)) if torch.cuda.is_available() else on_cpu


def _on_gpu(model: PlainModel) -> Sequence[Peer]:
    def half(pixels: np.ndarray, *, compiled: bool) -> Engine:
        return TorchEngine(model, pixels.shape[1:], device="cuda", half=torch.float16, compiled=compiled)

    return (
        Peer("torch eager fp32, cuda", lambda pixels: TorchEngine(model, pixels.shape[1:], device="cuda"), on_gpu=True),
        Peer(
            "torch autocast fp16, cuda",
            lambda pixels: TorchEngine(model, pixels.shape[1:], torch.float16, "cuda"),
            on_gpu=True,
        ),
        Peer("torch fp16, cuda", lambda pixels: half(pixels, compiled=False), on_gpu=True),
        Peer("torch fp16 compiled, cuda", lambda pixels: half(pixels, compiled=True), on_gpu=True),
        Peer(
            "timm export, onnxruntime, cuda", lambda pixels: _exported(model, pixels, onnxruntime, "cuda"), on_gpu=True
        ),
    )


class PlainModel(nn.Module):
    """An unmodified timm model: it computes all tokens in all blocks, and returns [cls] or its pooled output."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", 255 * torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return unit vectors (B, D) in float32 for uint8 pixels (B, H, W, 3)."""
        model: Any = self.model
        normalised = (pixels.float().permute(0, 3, 1, 2) - self.mean) / self.std
        tokens = model.forward_features(normalised.to(next(model.parameters()).dtype))
        return torch.nn.functional.normalize(model.forward_head(tokens, pre_logits=True).float(), dim=-1)


class TorchEngine(Engine):
    """A torch model as an engine, on the GPU or all CPUs of this process.

    Args:
        model: the model; pixels and vectors are in host memory.
        pixel_shape: (H, W, 3).
        autocast: 16-bit type for autocast, or None.
        device: "cpu" or "cuda".
        half: 16-bit type to convert the weights to, or None.
        compiled: use `torch.compile`.

    """

    def __init__(
        self,
        model: PlainModel,
        pixel_shape: tuple[int, ...],
        autocast: torch.dtype | None = None,
        device: str = "cpu",
        *,
        half: torch.dtype | None = None,
        compiled: bool = False,
    ) -> None:
        self.name, self.provider, self.version = "torch", device, torch.__version__
        self.pixel_shape = pixel_shape
        self.outputs = (EMBEDDING,)
        self.precision = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[half or autocast]
        self.threads = available_cpus() if device == "cpu" else None
        own = model if device == "cpu" and half is None else copy.deepcopy(model).to(device)
        if half is not None:
            own.model.to(half)
        self._model: Any = torch.compile(own) if compiled else own
        self._autocast = autocast
        torch.set_num_threads(available_cpus())

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """See base class."""
        if self._model is None:
            raise EngineError("this engine is closed")
        casting = (
            contextlib.nullcontext() if self._autocast is None else torch.autocast(self.provider, dtype=self._autocast)
        )
        with torch.inference_mode(), casting:
            vectors = self._model(torch.from_numpy(pixels).to(self.provider))
            return {EMBEDDING: vectors.float().cpu().numpy()}

    def _close(self) -> None:
        """See base class."""
        self._model = None


def _exported(model: nn.Module, pixels: np.ndarray, module: CpuEngineModule, provider: str | None = None) -> Engine:
    """Export the model, tune it as `mimexport compile` does, and open it; the file is deleted afterwards."""
    options = CompileOptions(engine=module.NAME, provider=provider)
    with tempfile.TemporaryDirectory(prefix="mimexport-peer-") as folder, torch.no_grad(), quiet_exporter():
        path = Path(folder) / "plain.onnx"
        torch.onnx.export(
            model,
            (torch.zeros(2, *pixels.shape[1:], dtype=torch.uint8),),
            path,
            dynamo=True,
            input_names=["pixels"],
            output_names=[EMBEDDING],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        best, _ = module.tune_graph(path, pixels, options, lambda *_: None)
        engine = module.open_setting(path, Setting(best.threads, best.streams), options)
        engine.precision, engine.best_batch = engine.precision or "fp32", best.batch
        return engine
