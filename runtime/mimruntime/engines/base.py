"""The interface of all engines: pixels in, named arrays out, used with `with`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from mimruntime.engines.forks import refusal, stays_with_process
from mimruntime.errors import EngineError

if TYPE_CHECKING:
    from mimruntime.artifact import Artifact
    from mimruntime.engines.options import CompileOptions
    from mimruntime.engines.record import CompiledEngine, EngineRecord, Trial

EMBEDDING = "embedding"
SELECTION = "selection"
KEPT = "kept"

Progress = Callable[[str, int, int], None]
"""Called with the phase of a compilation, the number of steps done and the total; raise an exception in it to cancel."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Parallelism of an engine: total CPU threads, and the number of batch parts that run concurrently (streams)."""

    threads: int
    streams: int = 1


class Engine(ABC):
    """A graph loaded by one library on one provider.

    At most `parallel_runs` threads may be in `run` or `run_on_device` at once.

    Attributes:
        name: name in `mimruntime.engines.ENGINES`.
        provider: the hardware that actually runs it ("cpu", "cuda" …).
        version: the library's version.
        pixel_shape: (H, W, 3) of an image.
        outputs: names of the arrays that `run` returns: "embedding", and "selection" and "kept" if the graph has them.
        precision: precision of the matrix products, as reported by the library; None if only the graph determines it.
        threads: CPU threads of one run; None if it does not run on the CPU.
        streams: number of batch parts that run concurrently.
        best_batch: the fastest batch size measured; None if not measured.
        largest_batch: largest batch size; None means no limit.
        compiled: name of the compiled engine's folder; None if it was opened from the graph.
        parallel_runs: number of runs that may go on at once.
        reads_device: whether `run_on_device` is supported.

    """

    name: str
    provider: str
    version: str
    pixel_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    precision: str | None = None
    threads: int | None = None
    streams: int = 1
    best_batch: int | None = None
    largest_batch: int | None = None
    compiled: str | None = None
    parallel_runs: int = 1
    reads_device: bool = False

    _process: int

    def __new__(cls, *_: object, **__: object) -> Self:
        """Store the process id; see `check_process`."""
        engine = super().__new__(cls)
        engine._process = os.getpid()
        stays_with_process(engine)
        return engine

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked after the engine was opened."""
        return self._process != os.getpid()

    def check_process(self) -> None:
        """Raise EngineError in a forked process, where a run would wait for threads that exist only in the parent.

        Raises:
            EngineError: the engine was opened before the fork.

        """
        if self.is_inherited:
            raise EngineError(refusal(self.name))

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the graph's outputs for one batch.

        Args:
            pixels: uint8 (B, H, W, 3), B ≥ 1.

        Returns:
            "embedding": float32 (B, D); "selection" and "kept", if the graph has them: float32 (B, gh, gw).

        Raises:
            EngineError: pixels have another shape or dtype, the run failed, or the process was forked.

        """
        self.check_process()
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self.pixel_shape or not len(pixels):
            expected = ", ".join(str(length) for length in ("B", *self.pixel_shape))
            raise EngineError(f"pixels are {pixels.dtype} {pixels.shape}, expected uint8 ({expected})")
        return self._run(pixels)

    @abstractmethod
    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Run checked pixels; see `run`."""

    def run_on_device(self, address: int, count: int) -> dict[str, np.ndarray]:  # noqa: ARG002 - for engines that have it
        """As `run`, for pixels in the memory of the engine's GPU; outputs are on the host.

        Args:
            address: of uint8 (count, H, W, 3), complete, and unchanged until this returns.
            count: number of images, ≥ 1.

        Raises:
            EngineError: as `run`, or the engine reads only the host's memory (`reads_device`).

        """
        raise EngineError(f"the engine '{self.name}' on {self.provider} reads pixels from the host's memory only")

    def close(self) -> None:
        """Free the library's memory. Further calls, and calls in a forked process, do nothing."""
        if not self.is_inherited:
            self._close()

    @abstractmethod
    def _close(self) -> None:
        """Close in the process that opened it; see `close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EngineModule(Protocol):
    """The names that every engine's module defines."""

    NAME: str
    """Name in `mimruntime.engines.ENGINES`."""
    NEEDS_GPU: bool
    """Whether it runs only on a GPU. If so, it uses no CPU threads, and one process per GPU is enough."""
    CPU_PRECISIONS: frozenset[str]
    """Graph precisions that it runs on a CPU."""
    OPTIONS: frozenset[str]
    """The options of `mimexport compile` that `compile_engine` accepts, without dashes."""

    def library_version(self) -> str:
        """Return the version of the library; raise MissingExtraError if it is not installed."""

    def other_hardware(self, record: EngineRecord) -> str | None:
        """Return why a compiled engine cannot run on this machine's hardware, or None.

        The reason is a clause without its subject: "was compiled for sm86, this GPU is …".
        """

    def open_engine(
        self, graph: Path, *, provider: str | None, threads: int | None, compiled: CompiledEngine | None
    ) -> Engine:
        """Open `graph`; see `mimruntime.engines.open_engine`."""

    def check_options(self, options: CompileOptions, precision: str) -> None:
        """Raise an error if `compile_engine` cannot use the options on this machine for a graph of this precision."""

    def compile_engine(
        self, artifact: Artifact, folder: Path, options: CompileOptions, progress: Progress
    ) -> EngineRecord:
        """Write the compiled form into `folder` and return its record, without `options`, `files` and `created`."""


class CpuEngineModule(EngineModule, Protocol):
    """The further names of the module of an engine that is tuned on a CPU."""

    def open_setting(self, graph: Path, setting: Setting, options: CompileOptions) -> Engine:
        """Open `graph` with `setting`, as `tune_graph` measures it."""

    def tune_graph(
        self, graph: Path, images: np.ndarray, options: CompileOptions, progress: Progress
    ) -> tuple[Trial, tuple[Trial, ...]]:
        """Return the fastest batch, threads and streams measured on images, uint8 (n, H, W, 3), and all measurements."""
