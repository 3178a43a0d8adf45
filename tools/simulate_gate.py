"""How often the gate is wrong: false alarms and missed losses, by simulation from measured per-image correctness.

    python tools/simulate_gate.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport

`mae-tiny` is measured once in fp32 and once with noise on its vectors as a deployed engine adds it; images are then drawn
from what was measured, again and again. Writes docs/gate.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from measure_aggregators import read_part

from mimeval import knn
from mimeval.neighbours import unit
from mimeval.statistics import judge_gain
from mimexport.fit.fit import FitOptions, Fitter, plain_head

DOCS = Path(__file__).parents[1] / "docs" / "gate.md"
MARKER = "<!-- written by tools/simulate_gate.py, below this line -->"
JUDGED = 10_000
"""Of the images that are read; the others are searched in."""
NOISE = {"fp16": 0.001, "int8": 0.03}
"""Length of the noise on a vector of length one: cosines of about 0.9999995 and 0.99955."""
SIZES = (50, 500, 2_000, 10_000)
MARGINS = (0.005, 0.01)
REPEATS = 200


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
@click.option("--agg", "aggs", multiple=True, default=("mean", "topk"), show_default=True)
def main(archive: Path, cache: Path, aggs: tuple[str, ...]) -> None:
    """Measure, simulate, write the table."""
    lines = [
        "| vector, engine | gain in fp32 | margin | images | nothing changed: red / undecided / green | half the gain lost |",
        "|---" * 6 + "|",
    ]
    for title, measured in measure(archive, cache, aggs):
        for margin in MARGINS:
            for size in SIZES:
                unchanged = verdicts(measured, size, margin, lost=0.0)
                halved = verdicts(measured, size, margin, lost=0.5)
                cells = [title, f"{100 * measured.gain:+.1f}", f"{100 * margin:.1f}", f"{size:,}", unchanged, halved]
                lines.append(f"| {' | '.join(cells)} |")
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


def verdicts(measured: Measured, size: int, margin: float, *, lost: float) -> str:
    """Return the shares of red, undecided and green over the repeats, in per cent.

    Args:
        measured: images are drawn from it with replacement, so that its own figures are the truth.
        size: images of a draw.
        margin: of the gate.
        lost: share of the gain the engine loses: its right answers become wrong at random, as often as that takes.

    """
    counts: Counter[str] = Counter()
    for seed in range(REPEATS):
        rng = np.random.default_rng((seed, size))
        rows = rng.integers(0, len(measured.reference), size)
        # Which of the two is the engine is a coin's business, so that the truth is exactly 'no change'.
        coin, spoiled = rng.random(size) < 0.5, rng.random(size) < lost * measured.gain / measured.reference.mean()
        pairs = (measured.reference, measured.engine), (measured.reference_cls, measured.engine_cls)
        (reference, engine), (reference_cls, engine_cls) = (
            (np.where(coin, first[rows], second[rows]), np.where(coin, second[rows], first[rows]))
            for first, second in pairs
        )
        judged = judge_gain(reference, reference_cls, engine & ~spoiled, engine_cls, margin=margin, seed=seed)
        counts[judged.verdict] += 1
    return " / ".join(f"{100 * counts[verdict] / REPEATS:.1f}" for verdict in ("fail", "undecided", "pass"))


if __name__ == "__main__":
    main()
