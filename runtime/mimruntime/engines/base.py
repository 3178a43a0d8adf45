"""What every engine gives: pixels in, named arrays out, opened and closed by `with`."""

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

Progress = Callable[[str, int, int], None]
"""Told the phase of a compilation, the steps done and the steps there are; an exception it raises cancels."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How an engine is opened: CPU threads in all, and the parts of a batch they run side by side."""

    threads: int
    streams: int = 1


class Engine(ABC):
    """A graph made ready to run by one library on one provider.

    A caller makes one `run` at a time; an engine need not be safe against two.

    Attributes:
        name: the engine, as in the table of `mimruntime.engines`.
        provider: what really runs it ("cpu", "cuda" …), never merely what was asked for.
        version: the library's version.
        pixel_shape: (H, W, 3) of an image.
        outputs: the arrays `run` returns: "embedding", and "selection" where the graph has it.
        precision: of the matrix products, asked of the library; None: what the graph says.
        threads: CPU threads of one run; None: it does not run on the CPU.
        streams: parts of a batch that run side by side.
        best_batch: the batch that was measured to be best; None: nothing was measured.
        largest_batch: the most images of one run; None: no limit.
        compiled: name of the folder it was opened from; None: nothing was compiled for this machine.

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

    _process: int

    def __new__(cls, *_: object, **__: object) -> Self:
        """Note the process; see `check_process`."""
        engine = super().__new__(cls)
        engine._process = os.getpid()
        stays_with_process(engine)
        return engine

    @property
    def is_inherited(self) -> bool:
        """Whether this process was forked off after the engine was opened."""
        return self._process != os.getpid()

    def check_process(self) -> None:
        """Refuse an engine that is inherited: a run would wait for threads that stayed with the parent.

        Raises:
            EngineError: it is; the text says where to open one.

        """
        if self.is_inherited:
            raise EngineError(refusal(self.name))

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the graph's outputs for one batch.

        Args:
            pixels: uint8 (B, H, W, 3), B ≥ 1.

        Returns:
            "embedding": float32 (B, D); "selection", where the graph has it: float32 (B, gh, gw).

        Raises:
            EngineError: pixels of another shape or type, a run that failed, or a process that was forked off.

        """
        self.check_process()
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self.pixel_shape or not len(pixels):
            expected = ", ".join(str(length) for length in ("B", *self.pixel_shape))
            raise EngineError(f"pixels are {pixels.dtype} {pixels.shape}; the engine takes uint8 ({expected})")
        return self._run(pixels)

    @abstractmethod
    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Run pixels that were checked; see `run`."""

    def close(self) -> None:
        """Let go of the library's memory; a second call does nothing, nor does one in a process that was forked off."""
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
    """The names that the module of every engine has."""

    NAME: str
    """As in the table of `mimruntime.engines`."""
    NEEDS_GPU: bool
    """Whether it runs on a GPU and nowhere else: it has no CPU threads, and one process is enough for one GPU."""
    CPU_PRECISIONS: frozenset[str]
    """Precisions of graphs that it runs on a CPU."""
    OPTIONS: frozenset[str]
    """What `compile_engine` takes of `mimexport compile`'s options, without the dashes."""

    def library_version(self) -> str:
        """Return the version of the library; MissingExtraError where it is not installed."""

    def other_hardware(self, record: EngineRecord) -> str | None:
        """Return why something compiled before cannot run on this machine's hardware, or None.

        The reason is a clause without its subject: "was compiled for sm86, this GPU is …".
        """

    def open_engine(
        self, graph: Path, *, provider: str | None, threads: int | None, compiled: CompiledEngine | None
    ) -> Engine:
        """Open `graph`; see `mimruntime.engines.open_engine`."""

    def check_options(self, options: CompileOptions, precision: str) -> None:
        """Refuse values that `compile_engine` could do nothing with here, for a graph of this precision."""

    def compile_engine(
        self, artifact: Artifact, folder: Path, options: CompileOptions, progress: Progress
    ) -> EngineRecord:
        """Write the compiled form into `folder` and return its record, without `options`, `files` and `created`."""


class CpuEngineModule(EngineModule, Protocol):
    """What the module of an engine that is tuned on a CPU has beside them."""

    def open_setting(self, graph: Path, setting: Setting, options: CompileOptions) -> Engine:
        """Open `graph` as `tune_graph` measures it."""

    def tune_graph(
        self, graph: Path, images: np.ndarray, options: CompileOptions, progress: Progress
    ) -> tuple[Trial, tuple[Trial, ...]]:
        """Return the best batch, threads and streams by measurement on images, uint8 (n, H, W, 3), and all measurements."""
