"""The options of `mimexport compile`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from mimruntime.engines.record import BatchProfile
from mimruntime.errors import OptionError

Hint = Literal["throughput", "latency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """Options of a compilation; None, empty and False mean not given. Each engine accepts some of them.

    Attributes:
        engine: name in `mimruntime.engines.ENGINES`.
        provider: the hardware, by the engine's own name.
        precision: precision of the matrix products, if it may differ from the graph's.
        hint: goal of the tuning: "throughput" (images per second) or "latency" (time per image).
        batch: the batch sizes to support.
        threads: CPU threads.
        arch: GPU architectures ("sm86") to compile for.
        hardware_compat: other GPUs the plan runs on: "none", "ampere+" or "same".
        tf32: round the factors of fp32 products to 10 bits of mantissa.
        workspace: scratch memory, GiB.
        timing_cache: file of kernel timings.

    """

    engine: str
    provider: str | None = None
    precision: str | None = None
    hint: Hint | None = None
    batch: BatchProfile | None = None
    threads: int | None = None
    arch: tuple[str, ...] = ()
    hardware_compat: str | None = None
    tf32: bool = False
    workspace: float | None = None
    timing_cache: Path | None = None

    def given(self) -> dict[str, str]:
        """Return the given options except the engine, by name without dashes, with values as on the command line."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "engine"}
        absent = (None, (), False)
        given = {name: value for name, value in values.items() if not any(value is nothing for nothing in absent)}
        return {name.replace("_", "-"): _text(value) for name, value in given.items()}


def parse_batch(text: str) -> BatchProfile:
    """Parse "MIN,BEST,MAX".

    Raises:
        OptionError: the text has another form.

    """
    try:
        least, best, most = (int(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--batch {text}: expected MIN,BEST,MAX, for example 1,8,32") from error
    if not 1 <= least <= best <= most:
        raise OptionError(f"--batch {text}: expected 1 ≤ MIN ≤ BEST ≤ MAX")
    return BatchProfile(least=least, best=best, most=most)


def _text(value: object) -> str:
    if isinstance(value, BatchProfile):
        return f"{value.least},{value.best},{value.most}"
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is True else str(value)
