"""Measure the cold start and the peak memory of one engine in a new process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from mimruntime.errors import EngineError

_SCRIPT = "from mimruntime.bench.child import main; main()"


def cold_start(artifact: Path, engine: str, batch: int, provider: str | None = None) -> tuple[float, float]:
    """Return the seconds from process start to the first vector, and the peak memory in MiB after a run of `batch` images.

    Raises:
        EngineError: the process failed.

    """
    started = time.time()
    done = subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-c", _SCRIPT, str(artifact), engine, str(batch), *([provider] if provider else [])],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EngineError(f"{engine} failed in a new process: {lines[-1]}")
    said = json.loads(done.stdout)
    return said["first_vector"] - started, said["peak_mib"]


def main() -> None:
    """Open the artifact named on the command line, run it, and print what `cold_start` reads."""
    import numpy as np  # noqa: PLC0415 - its import time is part of the measured start

    from mimruntime.embedder import Embedder  # noqa: PLC0415

    path, engine, batch, *rest = sys.argv[1:]
    provider = rest[0] if rest else None
    with Embedder.open(path, engine=engine, provider=provider, batch_size=int(batch)) as embedder:
        size = embedder.artifact.manifest.preprocess.size
        pixels = np.zeros((int(batch), size, size, 3), np.uint8)
        embedder.run(pixels[:1])
        first = time.time()
        embedder.run(pixels)
    sys.stdout.write(json.dumps({"first_vector": first, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Return the peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts memory of the parent before exec
        held = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(held.split()[1]) / 1024
    import resource  # noqa: PLC0415 - absent on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
