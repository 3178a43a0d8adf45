"""Measure the cost of `fit` by number of images: seconds and peak memory, each size in a new process.

python tools/bench_fit.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np

from mimeval.datasets import open_dataset
from mimexport.fitting.fitter import FitOptions, Fitter
from mimexport.fitting.sources import LazySources

SIZES = (3_750, 7_500, 15_000, 30_000)
_MIB = 1 << 10
"""Unit of `ru_maxrss` on Linux: KiB."""


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@click.option("--images", type=int, help="Fit on this many images and print one line.  [default: all sizes]")
@click.option("--unlabelled", is_flag=True, help="With --images: learn without labels.")
@click.option("--agg", default="abmilp", show_default=True, help="With --images: aggregator to learn.")
def main(archive: Path, cache: Path, images: int | None, unlabelled: bool, agg: str) -> None:
    """Print a table; tokens missing in the cache are computed and timed."""
    if images is not None:
        click.echo(json.dumps(fit_once(archive, cache, images, agg, unlabelled=unlabelled)))
        return
    click.echo("| images | labels | tokens, s | AbMILP, s | peak memory, MiB |\n|---|---|---|---|---|")
    for without in (False, True):
        for size in SIZES:
            command = [sys.executable, __file__, str(archive), "--cache", str(cache), "--images", str(size)]
            command += ["--unlabelled"] if without else []
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            cells = (f"{found['tokens_s']:.0f}", f"{found['fit_s']:.0f}", f"{found['peak_mib']:.0f}")
            click.echo(f"| {size:,} | {'no' if without else 'yes'} | {' | '.join(cells)} |")


def fit_once(archive: Path, cache: Path, count: int, agg: str, *, unlabelled: bool) -> dict[str, float]:
    """Fit `agg` on `count` images with balanced classes."""
    whole = open_dataset(f"zip:{archive}", cache=cache).train
    part = whole.take(np.arange(0, len(whole), len(whole) // count))
    files = LazySources(range(len(part)), part.load)
    options = FitOptions(
        model="mae-tiny", agg=agg, images=files, labels=None if unlabelled else part.labels,
        digest=part.digest, cache=cache,
    )  # fmt: skip
    fitter = Fitter(options)
    started = time.perf_counter()
    fitter.tokens(files, options.digest, "training")
    fitter.views()
    between = time.perf_counter()
    fitter.fit()
    return {
        "tokens_s": between - started,
        "fit_s": time.perf_counter() - between,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB,
    }


if __name__ == "__main__":
    main()
