"""The number of CPUs this process may use, and their instruction sets."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from mimruntime.errors import OptionError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_INFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "bf16", "i8mm")
"""Instruction sets that change the speed of matrix products, by the names in /proc/cpuinfo."""
_MULTIPLY_BF16 = {"amx_bf16", "avx512_bf16"}
"""With any of these, bf16 products are faster than float32 products."""
_VARIABLE = "MIMEXPORT_CPU"
_BASIC = {"avx512f", "avx2"}
"""The members of `_INSTRUCTIONS` that remain with `MIMEXPORT_CPU=plain`."""


def is_plain() -> bool:
    """Return whether `MIMEXPORT_CPU=plain` is set: treat the CPU as one without bf16, VNNI and AMX.

    Libraries detect the CPU themselves. For oneDNN, which torch and OpenVINO use, also set
    ONEDNN_MAX_CPU_ISA=AVX512_CORE.

    Raises:
        OptionError: the variable has another value.

    """
    value = os.environ.get(_VARIABLE, "")
    if value not in {"", "plain"}:
        raise OptionError(f"{_VARIABLE}={value}: expected plain, or unset it")
    return value == "plain"


def multiplies_bf16() -> bool:
    """Return whether bf16 products are faster than float32 products on this CPU."""
    return not _MULTIPLY_BF16.isdisjoint(cpu_instructions())


def available_cpus(quota_file: Path = _QUOTA) -> int:
    """Return the number of CPUs in the affinity mask, limited by the container's quota (cgroup v2); at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        return count


def decoding_threads() -> int:
    """Return how many threads decode where nobody says: one per CPU, at most 32, where Python's lock is what they wait for."""
    return min(available_cpus(), 32)


def cpu_instructions(info_file: Path = _INFO) -> tuple[str, ...]:
    """Return this CPU's instruction sets that matter for matrix products; empty if they cannot be read.

    With `is_plain`, only those of a plain CPU are returned.
    """
    try:
        lines = info_file.read_text().splitlines()
    except OSError:
        return ()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split()
    return tuple(name for name in _INSTRUCTIONS if name in flags and (name in _BASIC or not is_plain()))


def describe_cpu() -> str:
    """Return the properties that tuning depends on: architecture, instruction sets, number of usable CPUs."""
    return f"{platform.machine()} {'+'.join(cpu_instructions()) or 'baseline'}, {available_cpus()} CPUs"
