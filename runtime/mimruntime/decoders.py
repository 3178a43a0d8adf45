"""What decodes the images of a batch: threads, processes or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from mimruntime.cpus import decoding_threads
from mimruntime.decode import Source
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.errors import ImageError, OptionError, UnknownNameError
from mimruntime.gpu.coded import GpuJpeg, read_for_gpu
from mimruntime.gpu.opening import open_gpu_decoder
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare

if TYPE_CHECKING:
    from mimruntime.gpu.decoder import GpuDecoder

Decode = Literal["threads", "processes", "gpu"]
"""Threads of this process, processes of their own, or an NVIDIA GPU."""

Prepared = GpuJpeg | ImageError | None
"""None if the pixels of an image were written; its error; or, with a GPU that decodes, the file for the GPU."""

Prepare = Callable[[Sequence[Source], np.ndarray], Sequence[Prepared]]
"""Write the pixels of n sources into rows of a batch, uint8 (n, H, W, 3), and return what came of each."""


@dataclass(frozen=True, slots=True, eq=False)
class Decoders:
    """What a batch pipeline decodes with.

    Attributes:
        prepare: is called by several threads at once.
        at_once: largest number of sources that are worth giving to one call of `prepare`.
        allocate: returns an array uint8 of a shape, for the pixels of a batch.
        gpu: decodes the files that `prepare` returns.
        close: frees what was opened, when no thread decodes any more.

    """

    prepare: Prepare
    at_once: int = 1
    allocate: Callable[[tuple[int, ...]], np.ndarray] = lambda shape: np.empty(shape, np.uint8)
    gpu: GpuDecoder | None = None
    close: Callable[[], None] = lambda: None


def open_decoders(
    kind: Decode, spec: Preprocess, budget: MemoryBudget, *, workers: int | None, scaled: bool, most_bytes: int
) -> Decoders:
    """Open what decodes.

    Args:
        kind: what it is.
        spec: the manifest's `preprocess`.
        budget: memory for all images that are being decoded.
        workers: number of threads or processes; None takes one per CPU, at most 32.
        scaled: see `mimruntime.preparation.prepare`.
        most_bytes: largest file for the GPU.

    Raises:
        UnknownNameError: the kind is unknown.
        OptionError: a GPU does not decode at a reduced size.
        MissingExtraError, EngineError: see `mimruntime.gpu.opening.open_gpu_decoder`.

    """
    if kind not in get_args(Decode):
        raise UnknownNameError("kind of decoding", kind, get_args(Decode))
    prepared = partial(prepare, spec=spec, budget=budget, scaled=scaled)
    if kind == "threads":
        return Decoders(_one_by_one(prepared))
    if kind == "processes":
        from mimruntime.decoder_processes import pool  # noqa: PLC0415 - slow, and only this needs it

        processes = pool.DecoderProcesses(workers or decoding_threads(), spec, budget, scaled=scaled)
        return Decoders(processes.prepare, pool.AT_ONCE, processes.allocate, close=processes.close)
    if scaled:
        raise OptionError("scaled_decoding is for decoding on the CPU; leave it out, or decode='gpu'")
    gpu = open_gpu_decoder(prepared)
    read = partial(read_for_gpu, spec=spec, budget=budget, most_bytes=most_bytes)
    return Decoders(_one_by_one(read), gpu=gpu, close=gpu.close)


def _one_by_one(prepare: Callable[..., np.ndarray | GpuJpeg | None]) -> Prepare:
    def prepare_one(source: Source, out: np.ndarray) -> Prepared:
        try:
            prepared = prepare(source, out=out)
        except ImageError as error:
            return error
        return prepared if isinstance(prepared, GpuJpeg) else None

    return lambda sources, rows: list(map(prepare_one, sources, rows))
