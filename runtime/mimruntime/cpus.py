"""How many CPUs this process may keep busy, and what they multiply."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

from mimruntime.errors import OptionError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_INFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "bf16", "i8mm")
"""What changes the speed of matrix products, by the kernel's names."""
_MULTIPLY_BF16 = {"amx_bf16", "avx512_bf16"}
"""Any of these makes products in bf16 faster than in float32."""
_VARIABLE = "MIMEXPORT_CPU"
_BASIC = {"avx512f", "avx2"}
"""What is left of `_INSTRUCTIONS` on a plain CPU."""


def is_plain() -> bool:
    """Return whether decisions are those for a CPU without bf16, VNNI and AMX, as `MIMEXPORT_CPU=plain` asks.

    Libraries decide for themselves: oneDNN, which torch and OpenVINO hold, follows ONEDNN_MAX_CPU_ISA=AVX512_CORE.

    Raises:
        OptionError: the variable says something else.

    """
    value = os.environ.get(_VARIABLE, "")
    if value not in {"", "plain"}:
        raise OptionError(f"{_VARIABLE}={value}: expected plain, or nothing")
    return value == "plain"


def multiplies_bf16() -> bool:
    """Return whether products in bf16 are faster here than in float32."""
    return not _MULTIPLY_BF16.isdisjoint(cpu_instructions())


def available_cpus(quota_file: Path = _QUOTA) -> int:
    """Return the CPUs of the affinity mask, or fewer where the container's quota (cgroup v2) is lower; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no quota
        return count


def decoding_threads() -> int:
    """Return how many threads decode where nobody says: one per CPU, at most 32, where Python's lock is what they wait for."""
    return min(available_cpus(), 32)


def cpu_instructions(info_file: Path = _INFO) -> tuple[str, ...]:
    """Return which of the instruction sets that matter for matrix products this CPU has; nothing where it cannot say.

    Of a CPU that shall pass for a plain one (`is_plain`) only what such a CPU has.
    """
    try:
        lines = info_file.read_text().splitlines()
    except OSError:
        return ()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "").split()
    return tuple(name for name in _INSTRUCTIONS if name in flags and (name in _BASIC or not is_plain()))


def describe_cpu() -> str:
    """Return what tuning depends on: architecture, instruction sets, CPUs this process may keep busy."""
    return f"{platform.machine()} {'+'.join(cpu_instructions()) or 'baseline'}, {available_cpus()} CPUs"
