"""What every engine gives: pixels in, named arrays out, opened and closed by `with`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np

EMBEDDING = "embedding"
SELECTION = "selection"


class Engine(ABC):
    """A graph made ready to run by one library on one provider.

    A caller makes one `run` at a time; an engine need not be safe against two.

    Attributes:
        name: the engine, as in the table of `mimruntime.engines`.
        provider: what really runs it ("cpu", "cuda" …), never merely what was asked for.
        version: the library's version.
        outputs: the arrays `run` returns: "embedding", and "selection" where the graph has it.

    """

    name: str
    provider: str
    version: str
    outputs: tuple[str, ...]

    @abstractmethod
    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the graph's outputs for one batch.

        Args:
            pixels: uint8 (B, H, W, 3), B ≥ 1.

        Returns:
            "embedding": float32 (B, D); "selection", where the graph has it: float32 (B, gh, gw).

        Raises:
            EngineError: pixels of another shape or type, or a run that failed.

        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the library's memory; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
