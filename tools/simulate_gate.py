"""How often the gate is wrong: false alarms and missed losses, by simulation from measured per-image correctness.

    python tools/simulate_gate.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport

`mae-tiny` is measured once in fp32 and once with noise on its vectors as a deployed engine adds it; images are then drawn
from what was measured, again and again. Writes docs/results/gate.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from measure_aggregators import read_part

from mimeval import knn
from mimeval.neighbours import unit
from mimeval.statistics import judge_gain
from mimexport.fitting.fitter import FitOptions, Fitter, plain_head

DOCS = Path(__file__).parents[1] / "docs" / "results" / "gate.md"
MARKER = "<!-- written by tools/simulate_gate.py, below this line -->"
JUDGED = 10_000
"""Of the images that are read; the others are searched in."""
NOISE = {"fp16": 0.001, "int8": 0.03}
"""Length of the noise on a vector of length one: cosines of about 0.9999995 and 0.99955."""
SIZES = (50, 1_000, 2_500, 10_000)
"""The second is what engines see in the gate."""
MARGINS = (0.005, 0.01)
REPEATS = 200
WORST_FIRST = ("fail", "undecided", "pass")


@dataclass(frozen=True, slots=True)
class Measured:
    """Whether every image was right, bool (n,): in fp32 and on the engine, of the aggregator and of [cls]."""

    reference: np.ndarray
    reference_cls: np.ndarray
    engine: np.ndarray
    engine_cls: np.ndarray

    @property
    def gain(self) -> float:
        """In fp32."""
        return float(self.reference.mean() - self.reference_cls.mean())


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@click.option("--agg", "aggs", multiple=True, default=("mean", "topk", "center-weighted"), show_default=True)
def main(archive: Path, cache: Path, aggs: tuple[str, ...]) -> None:
    """Measure, simulate, write the table."""
    rows = dict(measure(archive, cache, aggs))
    weakest = min(rows, key=lambda title: rows[title].gain)
    gains = ", ".join(f"{title} {100 * row.gain:+.1f}" for title, row in rows.items())
    lines = [
        f"{len(rows)} rows are judged together, gains in fp32: {gains}. Half of the gain is taken from {weakest}.",
        "",
        "| margin | images | nothing changed: red / undecided / green | one row lost half its gain |",
        "|---" * 4 + "|",
    ]
    for margin in MARGINS:
        for size in SIZES:
            unchanged = verdicts(rows, size, margin, halved=None)
            halved = verdicts(rows, size, margin, halved=weakest)
            lines.append(f"| {100 * margin:.1f} | {size:,} | {unchanged} | {halved} |")
            click.echo(lines[-1])
    prose = DOCS.read_text(encoding="utf-8").split(MARKER)[0]
    DOCS.write_text(prose + MARKER + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def measure(archive: Path, cache: Path, aggs: tuple[str, ...]) -> Iterator[tuple[str, Measured]]:
    """Yield a title and what was measured for every aggregator and engine."""
    images, labels, digest = read_part(archive, "train/")
    fitter = Fitter(FitOptions(model="mae-tiny", agg="cls", images=images, labels=labels, digest=digest, cache=cache))
    tokens = fitter.tokens(images, digest, "")
    judged = np.zeros(len(images), bool)
    judged[np.random.default_rng(0).permutation(len(images))[:JUDGED]] = True
    vectors = {agg: unit(fitter.vectors(plain_head(agg, fitter), tokens, whitened=False)) for agg in ("cls", *aggs)}

    def right(agg: str, noise: float) -> np.ndarray:
        drawn = np.random.default_rng(1).standard_normal(vectors[agg].shape, np.float32)
        table = vectors[agg] + noise * unit(drawn)
        return np.asarray(knn.predict(table[~judged], labels[~judged], table[judged]) == labels[judged])

    exact = {agg: right(agg, 0.0) for agg in vectors}
    for engine, noise in NOISE.items():
        noisy = {agg: right(agg, noise) for agg in vectors}
        for agg in aggs:
            yield f"`{agg}`, {engine}", Measured(exact[agg], exact["cls"], noisy[agg], noisy["cls"])


def verdicts(rows: Mapping[str, Measured], size: int, margin: float, *, halved: str | None) -> str:
    """Return the shares of red, undecided and green over the repeats, in per cent; one red row makes a repeat red.

    Args:
        rows: what is judged together; images are drawn from them with replacement, so that their figures are the truth.
        size: images of a draw.
        margin: of the gate.
        halved: the row whose engine loses half its gain: right answers become wrong at random, as often as that takes.

    """
    counts: Counter[str] = Counter()
    for seed in range(REPEATS):
        rng = np.random.default_rng((seed, size))
        images = rng.integers(0, len(next(iter(rows.values())).reference), size)
        # Which of the two is the engine is a coin's business, so that the truth is exactly 'no change'.
        coin = rng.random(size) < 0.5
        found = {
            title: judged(row, images, coin, rng, margin, seed, rows=len(rows), lost=0.5 if title == halved else 0.0)
            for title, row in rows.items()
        }
        counts[min(found.values(), key=WORST_FIRST.index)] += 1
    return " / ".join(f"{100 * counts[verdict] / REPEATS:.1f}" for verdict in WORST_FIRST)


def judged(
    row: Measured, images: np.ndarray, coin: np.ndarray, rng: np.random.Generator, margin: float, seed: int,
    *, rows: int, lost: float,
) -> str:  # fmt: skip
    """Return the verdict on one row of one draw."""
    spoiled = rng.random(len(images)) < lost * row.gain / row.reference.mean()
    pairs = (row.reference, row.engine), (row.reference_cls, row.engine_cls)
    (reference, engine), (reference_cls, engine_cls) = (
        (np.where(coin, first[images], second[images]), np.where(coin, second[images], first[images]))
        for first, second in pairs
    )
    return judge_gain(
        reference, reference_cls, engine & ~spoiled, engine_cls, margin=margin, seed=seed, rows=rows
    ).verdict


if __name__ == "__main__":
    main()
