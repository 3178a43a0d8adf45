"""The options of a plan, and the checks before a build."""

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
    """Options of a build of one graph.

    Attributes:
        flavour: the library.
        precision: precision of the graph in its manifest; no option changes it.
        batch: the batch sizes the plan supports.
        architectures: tensorrt-rtx: architectures to build for; empty builds one portable plan for sm80 and later.
        hardware_compatibility: tensorrt: other GPUs the plan runs on: "none", "ampere+" or "same" (same architecture).
        tf32: round the factors of fp32 products to 10 bits of mantissa.
        workspace_gib: limit of the builder's scratch memory, GiB; None means no limit.
        timing_cache: tensorrt: file of kernel timings, read if it exists, and written.

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
        """Raise an error if the library cannot build the plan.

        Raises:
            OptionError: a value is out of range, or an architecture cannot run this graph.
            UnknownNameError: an architecture is unknown.

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
        """Return the hardware the plan runs on, as text for its record.

        Args:
            gpu: the GPU it is built on; None if it is built ahead of time.

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
