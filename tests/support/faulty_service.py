"""The program `mimexport` with an engine that is slow or fails on request, for tests of the service.

FAULT_SLEEP: additional seconds of a run per image.
FAULT_HOLD: while this file exists, runs wait.
FAULT_DECODE: size in bytes of an image whose decoding takes an hour.
FAULT_FILE: while this file exists, runs fail; it contains the number of runs to fail, or "all".
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from mimexport.cli import main
from mimruntime.embedder import Embedder
from mimruntime.errors import EngineError

_outputs = Embedder.outputs


def faulty_outputs(self, pixels):
    time.sleep(float(os.environ.get("FAULT_SLEEP", "0")) * len(pixels))
    while Path(os.environ.get("FAULT_HOLD", "/nonexistent")).exists():
        time.sleep(0.02)
    file = Path(os.environ.get("FAULT_FILE", "/nonexistent"))
    if file.exists():
        if (failures := file.read_text()) != "all":
            rest = int(failures) - 1
            file.write_text(str(rest)) if rest else file.unlink()
        raise EngineError("injected")
    return _outputs(self, pixels)


_prepare = Embedder.prepare


def faulty_prepare(self, source, **options):
    if isinstance(source, bytes) and len(source) == int(os.environ.get("FAULT_DECODE", "-1")):
        time.sleep(3600)
    return _prepare(self, source, **options)


Embedder.outputs = faulty_outputs
Embedder.prepare = faulty_prepare

if __name__ == "__main__":
    main()
