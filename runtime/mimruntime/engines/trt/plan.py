"""What to build: everything that decides a plan's bytes, checked before the library is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mimruntime.engines.record import BatchProfile
from mimruntime.engines.trt.cuda import Gpu
from mimruntime.engines.trt.flavour import Flavour
from mimruntime.errors import OptionError, UnknownNameError

PORTABLE = "sm80 and later"
_NO_TURING_PRODUCTS = ("fp32", "bf16", "fp8", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """A build of one graph.

    Attributes:
        flavour: the library.
        precision: of the graph, as its manifest says; no flag changes it.
        batch: the batches it runs.
        architectures: tensorrt-rtx: what it is built for; empty is one portable plan for sm80 and later.
        hardware_compatibility: tensorrt: the GPUs beside the one at hand it shall run on: "none", "ampere+", "same".
        tf32: let fp32 products round their factors to 10 bits of mantissa.
        workspace_gib: scratch memory the builder may plan with, GiB; None is all there is.
        timing_cache: tensorrt: file of kernel timings, read where it exists, and written.

    """

    flavour: Flavour
    precision: str
    batch: BatchProfile
    architectures: tuple[str, ...] = ()
    hardware_compatibility: str = "none"
    tf32: bool = False
    workspace_gib: float | None = None
    timing_cache: Path | None = None

    def check(self) -> None:
        """Refuse what the flavour does not build.

        Raises:
            OptionError: a value out of range, or an architecture that cannot run this graph.
            UnknownNameError: an architecture that is not known.

        """
        if self.workspace_gib is not None and not 0 < self.workspace_gib < math.inf:
            raise OptionError(f"--workspace {self.workspace_gib}: expected more than 0 GiB")
        for arch in self.architectures:
            if arch in self.flavour.refused:
                raise OptionError(f"--arch {arch}: {self.flavour.refused[arch]}")
            if arch not in self.flavour.architectures:
                raise UnknownNameError("architecture", arch, self.flavour.architectures)
        if len(set(self.architectures)) < len(self.architectures):
            raise OptionError(f"--arch {','.join(self.architectures)} names an architecture twice")
        if "sm75" in self.architectures and self.precision in _NO_TURING_PRODUCTS:
            raise OptionError(
                f"--arch sm75: Turing has no {self.precision} matrix product in {self.flavour.name};"
                " build the artifact with --precision fp16, or leave sm75 out"
            )

    def hardware(self, gpu: Gpu | None) -> str:
        """Return what the plan runs on, in words.

        Args:
            gpu: the one it is built on; None where it is built ahead of time.

        """
        if gpu is None:
            return ", ".join(self.architectures) or PORTABLE
        return {"none": f"{gpu.name} ({gpu.arch})", "same": gpu.arch, "ampere+": PORTABLE}[self.hardware_compatibility]


def misfit(flavour: Flavour, hardware: str, gpu: Gpu) -> str | None:
    """Return why a plan for `hardware` does not run on `gpu`, as a clause without its subject, or None."""
    if gpu.arch in flavour.refused:
        return f"does not run on this GPU, {gpu}: {flavour.refused[gpu.arch]}"
    named = {gpu.arch, str(gpu)} & set(hardware.split(", "))
    fits = named or (hardware == PORTABLE and gpu.capability >= 80)
    return None if fits else f"was compiled for {hardware}, this GPU is {gpu}"
