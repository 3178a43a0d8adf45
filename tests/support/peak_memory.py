"""Print for each file of a folder its name, the estimated memory of decoding it and the measured memory, in bytes."""

import ctypes
import sys
from pathlib import Path

from mimruntime.decode import decode, open_image


def resident(field: str) -> int:
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024


def peak(path: Path) -> int:
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    decode(path)
    return resident("VmHWM") - before


for image in sorted(Path(sys.argv[1]).iterdir()):
    with open_image(image) as opened:
        estimate = opened.memory
    print(image.name, estimate, peak(image))  # noqa: T201 - what it is for
