"""Embed 2,000 and 20,000 images by the local command and by Ray on two workers: same vectors, images/s, driver memory.

python tools/bench_scale.py artifacts/mae-tiny-topk reports/scale [tiny-imagenet-64.zip]
"""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mimruntime.synthetic import draw_scenes

SIZES = (2_000, 20_000)
WORKERS = 2
SHARD = 500
START = "from mimexport.cli import main; main()"
RUNS = {"local": [], "ray": ["--ray", "auto", "--workers", str(WORKERS)]}


def photographs(archive: str | None) -> Iterator[bytes]:
    """Yield JPEG files from the archive, or synthetic scenes without one."""
    if archive is None:
        for scene in draw_scenes(SIZES[-1], 64):
            stream = io.BytesIO()
            Image.fromarray(scene).save(stream, "JPEG")
            yield stream.getvalue()
        return
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if name.startswith("train/") and name.endswith(".JPEG"):
                yield files.read(name)


def write_images(folder: Path, archive: str | None) -> list[Path]:
    """Write one folder of images per size (smaller ones are subsets of larger ones); return the folders."""
    folders = [folder / str(size) for size in SIZES]
    for target in folders:
        target.mkdir()
    for number, photo in zip(range(SIZES[-1]), photographs(archive), strict=False):
        path = folders[-1] / f"{number:05d}.jpg"
        path.write_bytes(photo)
        if number < SIZES[0]:
            (folders[0] / path.name).hardlink_to(path)
    return folders


def run(artifact: str, images: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Run the command; return its seconds and the peak memory of its process (the driver) in MB."""
    command = [sys.executable, "-c", START, "embed", artifact, str(images), "--out", f"{out}/"]
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--shard-size", str(SHARD), *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _peak_kb(process.pid))
        time.sleep(0.2)
    wall = time.perf_counter() - started
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"embed {options} ended with {process.returncode}: {said}")
    finished = sorted(path.stat().st_mtime for path in out.glob("part-*.parquet"))
    count = sum(1 for _ in images.iterdir())
    # Time from the first to the last shard, without the start of interpreter and workers.
    steady = (count - SHARD * WORKERS) / max(1e-9, finished[-1] - finished[WORKERS - 1])
    return {
        "images": count,
        "wall_s": round(wall, 1),
        "images_per_s": round(count / wall, 1),
        "images_per_s_steady": round(steady, 1),
        "driver_peak_mb": round(peak / 1e3, 1),
        "said": said.splitlines()[0],
    }


def _peak_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return int(status.split("VmHWM:")[1].split()[0]) if "VmHWM:" in status else 0


def compare(left: Path, right: Path) -> dict[str, Any]:
    """Compare two folders of shards after sorting by path."""
    a, b = (pq.read_table(folder).sort_by("path") for folder in (left, right))
    vectors = [np.stack(table.column("vector").to_numpy()) for table in (a, b)]
    return {
        "rows": [len(a), len(b)],
        "same_paths": a.column("path").equals(b.column("path")),
        "unique_paths": len(set(a.column("path").to_pylist())),
        "worst_difference": float(np.abs(vectors[0] - vectors[1]).max()),
        "same_bytes": bool(np.array_equal(vectors[0], vectors[1])),
    }


@click.command()
@click.argument("artifact")
@click.argument("report")
@click.argument("archive", required=False)
def main(artifact: str, report: str, archive: str | None) -> None:
    """Measure all sizes, smallest first, and write `scale.json` into the folder REPORT."""
    figures: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs", "shard_size": SHARD}
    figures["source"] = "drawn" if archive is None else Path(archive).name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = write_images(folder, archive)
        for size, images in zip(SIZES, folders, strict=True):
            figures[f"load_before_{size}"] = round(os.getloadavg()[0], 1)
            for run_name, options in RUNS.items():
                figures[f"{run_name}_{size}"] = run(artifact, images, folder / f"{run_name}-{size}", options)
                print(run_name, size, figures[f"{run_name}_{size}"], flush=True)
        figures["same"] = compare(folder / f"local-{SIZES[-1]}", folder / f"ray-{SIZES[-1]}")
    small, large = SIZES
    figures["ratio_ray_to_local"] = round(
        figures[f"ray_{large}"]["images_per_s"] / figures[f"local_{large}"]["images_per_s"], 3
    )
    figures["ratio_steady"] = round(
        figures[f"ray_{large}"]["images_per_s_steady"] / figures[f"local_{large}"]["images_per_s_steady"], 3
    )
    for run_name in RUNS:
        peaks = [figures[f"{run_name}_{size}"]["driver_peak_mb"] for size in (small, large)]
        figures[f"driver_growth_{run_name}_mb"] = round(peaks[1] - peaks[0], 1)
    Path(report).mkdir(parents=True, exist_ok=True)
    (Path(report) / "scale.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
