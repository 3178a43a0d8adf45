"""The two libraries TensorRT and TensorRT-RTX: their modules and the GPUs they build for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mimruntime.engines.trt.messages import one_line
from mimruntime.errors import EngineError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two libraries.

    Attributes:
        name: name in `mimruntime.engines.ENGINES`; also the name of its pip extra.
        module: name of the module to import.
        architectures: allowed values of `--arch`; empty if it builds only for this machine's GPU.
        refused: unsupported architectures, each with the advice for the user.

    """

    name: str
    module: str
    architectures: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def load(self) -> Any:
        """Import the library.

        Raises:
            MissingExtraError: it is not installed.
            EngineError: it is installed but does not load.

        """
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"the engine '{self.name}'", extra=self.name) from error
        except Exception as error:  # a missing shared library raises OSError, RuntimeError or ImportError
            raise EngineError(f"{self.name}: the module {self.module} does not load: {one_line(error)}") from error


_OTHER = "tensorrt-rtx has no kernels for it; compile on that GPU with --engine tensorrt"

TENSORRT = Flavour("tensorrt", "tensorrt")
TENSORRT_RTX = Flavour(
    "tensorrt-rtx",
    "tensorrt_rtx",
    architectures=("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
    refused={"sm90": _OTHER, "sm100": _OTHER, "sm103": _OTHER},
)
