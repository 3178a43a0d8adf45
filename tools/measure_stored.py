"""Measure the loss of each storage type by aggregator; write the table in docs/results/stored-precision.md.

    python tools/measure_stored.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport --model mae-tiny

Vectors are computed from stored tokens with the package's heads, with and without whitening. Missing tokens are computed.
Mean and scale are measured on the first 256 training images, as in a build. Only the page's rows of this backbone change.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from measure_aggregators import beginning

from mimeval import knn
from mimeval.accelerator import accelerated
from mimeval.cli.options import DEVICE
from mimeval.datasets import open_dataset
from mimeval.neighbours import overlap, unit
from mimeval.stored import searches
from mimexport.fitting.fitter import FitOptions, Fitter
from mimexport.fitting.sources import LazySources
from mimexport.gpu_products import products_on
from mimexport.heads import embedded_heads, load_head
from mimruntime.storage import Codec, codec_of, measure_statistics

PAGE = Path(__file__).parents[1] / "docs" / "results" / "stored-precision.md"
MARKER = "<!-- written by tools/measure_stored.py, below this line -->"
HEADS = ("cls", "mean", "topk", "abmilp", "ep")
CALIBRATION, RECALLED = 256, 10
WAYS = ("fp32", "fp16", "int8", "bits", "bits, rescored", "bits, rescored by int8", "TF32")


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@click.option("--model", required=True, help="An embedded backbone.")
@click.option("--training", default=10_000, show_default=True, help="Number of gallery images.")
@click.option("--images", default=10_000, show_default=True, help="Images that search.")
@DEVICE
def main(archive: Path, cache: Path, model: str, training: int, images: int, device: str) -> None:
    """Measure every head of `model` and write its rows."""
    dataset = beginning(open_dataset(f"zip:{archive}", cache=cache), training, images)
    train, test = dataset.train, dataset.test
    sources = [LazySources(range(len(part)), part.load) for part in (train, test)]
    fitter = Fitter(
        FitOptions(model=model, agg="mean", images=sources[0], labels=None, digest="", cache=cache, device=device)
    )
    tokens = [fitter.tokens(source, part.digest, "") for source, part in zip(sources, (train, test), strict=True)]
    shipped = embedded_heads(model)
    lines = []
    for name in (name for name in HEADS if name in shipped):
        head = load_head(shipped[name])
        for whitened in (False, True):
            vectors = [unit(fitter.vectors(head, part, whitened=whitened)) for part in tokens]
            with accelerated(products_on(fitter.backbone.device)):
                cells = measure(*vectors, train.labels, test.labels)
            lines.append(f"| {model} | `{name}`{', whitened' if whitened else ''} | {' | '.join(cells)} |")
            click.echo(lines[-1])
    write(model, lines, f"{model}: {len(test):,} validation images search {len(train):,} training images.")


def measure(gallery: np.ndarray, queries: np.ndarray, known: np.ndarray, truth: np.ndarray) -> list[str]:
    """Return a cell per search function: k-NN accuracy and the share of the ten nearest in float32 that are found."""
    statistics = measure_statistics(gallery[:CALIBRATION])
    dim = gallery.shape[1]
    codecs: dict[str, Codec] = {store: codec_of(statistics, store, dim, "") for store in ("fp16", "int8", "bits")}
    found = {name: search(queries, gallery, knn.K) for name, search in searches(codecs).items()}
    wanted = found["fp32"][0][:, :RECALLED]
    return [
        f"{100 * float((knn.vote(known[indices], cosines) == truth).mean()):.1f}"
        + ("" if name == "fp32" else f" ({100 * float(overlap(indices[:, :RECALLED], wanted).mean()):.0f})")
        for name, (indices, cosines) in found.items()
    ]


def write(model: str, lines: list[str], note: str) -> None:
    """Write the rows of one backbone below the page's marker."""
    prose, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKER)
    kept = [line for line in rest.splitlines() if line.startswith("| mae") and not line.startswith(f"| {model} ")]
    notes = [line for line in rest.splitlines() if line.startswith("mae") and not line.startswith(f"{model}:")]
    head = f"| backbone | vectors | {' | '.join(WAYS)} |"
    table = "\n".join(
        [head, "|---" * (len(WAYS) + 2) + "|", *sorted([*kept, *lines], key=lambda line: line.split("|")[1])]
    )
    PAGE.write_text(f"{prose}{MARKER}\n\n{table}\n\n" + "\n".join(sorted([*notes, note])) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
