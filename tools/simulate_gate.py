"""How often the gate is wrong: false alarms and missed losses, by simulation from measured per-image correctness.

    make eval-engines
    python tools/simulate_gate.py

Uses the artifacts and torch features that the gate stores, and makes them where they are missing. Scores every aggregator
that the gate judges in narrow precisions: in fp32, and with as much noise on its vectors as a deployed engine adds. Then
draws images from these scores many times. Writes the table in docs/results/gate.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from eval_engines import MARGIN, PLANS, SHARED, build_all

from mimeval import knn
from mimeval.cli.progress import ConsoleProgress
from mimeval.datasets import open_dataset
from mimeval.feature_store import FeatureStore
from mimeval.images import choose_images
from mimeval.measurement import torch_tables
from mimeval.models import find_baselines, group_models
from mimeval.neighbours import unit
from mimeval.statistics import judge_gain
from mimexport.references import References

DOCS = Path(__file__).parents[1] / "docs" / "results" / "gate.md"
MARKER = "<!-- written by tools/simulate_gate.py, below this line -->"
NOISE = {"fp16": 0.001, "int8": 0.03}
"""Length of the noise on a vector of length one: cosines of about 0.9999995 and 0.99955."""
SIZES = (50, 1_000, 2_500, 10_000)
"""Numbers of images to draw, besides the number that engines see in the gate."""
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
@click.option("--cache", type=click.Path(path_type=Path), default=Path("~/.cache/mimexport"), show_default=True)
@click.option(
    "--artifacts", "folder", type=click.Path(path_type=Path), default=Path("artifacts/eval"), show_default=True
)
def main(cache: Path, folder: Path) -> None:
    """Measure, simulate, write the table."""
    gains = []
    table = [
        "| backbone | images | nothing changed: red / undecided / green | one row lost half its gain |",
        "|---" * 4 + "|",
    ]
    for model, plan in PLANS.items():
        rows = dict(measure(model, cache.expanduser(), folder))
        weakest = min(rows, key=lambda title: rows[title].gain)
        shown = ", ".join(f"{title} {100 * row.gain:+.1f}" for title, row in rows.items())
        gains.append(f"- {model}: {len(rows)} rows are judged together: {shown}. {weakest} loses half its gain.")
        for size in sorted({*SIZES, plan.deployed}):
            unchanged, halved = (verdicts(rows, size, MARGIN, halved=row) for row in (None, weakest))
            note = " (as in the gate)" if size == plan.deployed else ""
            table.append(f"| {model} | {size:,}{note} | {unchanged} | {halved} |")
            click.echo(table[-1])
    lines = ["Gains in fp32, in points:", "", *gains, "", *table]
    prose = DOCS.read_text(encoding="utf-8").split(MARKER)[0]
    DOCS.write_text(prose + MARKER + "\n\n" + "\n".join(lines) + "\n", encoding="utf-8")


def measure(model: str, cache: Path, folder: Path) -> Iterator[tuple[str, Measured]]:
    """Yield a title and the per-image correctness for every aggregator and engine of a backbone."""
    plan, shown = PLANS[model], ConsoleProgress()
    wide, _ = build_all(model, folder, plan.narrow, shown, precisions=("fp32",))
    dataset = open_dataset(f"zip:{SHARED}", cache=cache, limit=plan.images, train_limit=plan.training)
    images = choose_images(dataset, None, seed=0)
    models = group_models(wide, find_baselines(wide)[0])
    store = FeatureStore(cache / "features", shown.say, shown.progress)
    tables = torch_tables(models, images, References().open, store)
    truth = dataset.test.labels[images.order]

    def right(space: str, noise: float) -> np.ndarray:
        train, test = tables[space]
        known, rng = images.known(train), np.random.default_rng(1)
        vectors = [unit(table) for table in (known.features, test.embedding)]
        vectors = [table + noise * unit(rng.standard_normal(table.shape, np.float32)) for table in vectors]
        return np.asarray(knn.predict(vectors[0], known.labels, vectors[1]) == truth)

    baseline, *others = models
    for engine, noise in NOISE.items():
        for other in others:
            spaces = other.space, baseline.space
            yield f"`{other.title}` {engine}", Measured(*(right(space, n) for n in (0.0, noise) for space in spaces))


def verdicts(rows: Mapping[str, Measured], size: int, margin: float, *, halved: str | None) -> str:
    """Return the shares of red, undecided and green over the repeats, in per cent; one red row makes a repeat red.

    Args:
        rows: rows that are judged together; images are drawn from them with replacement, so their figures are the truth.
        size: number of images in a draw.
        margin: the gate's margin.
        halved: the row whose engine loses half its gain: enough right answers become wrong at random.

    """
    counts: Counter[str] = Counter()
    for seed in range(REPEATS):
        rng = np.random.default_rng((seed, size))
        images = rng.integers(0, len(next(iter(rows.values())).reference), size)
        # Swap engine and reference at random for each image, so that the null hypothesis is exactly true.
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
