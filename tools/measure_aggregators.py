"""Fit every head of `mae-tiny` and compare every aggregator with [cls] on labelled images: the table in docs/aggregators.md.

    python tools/measure_aggregators.py ../shared/data/tiny-imagenet-64.zip --cache ~/.cache/mimexport --ship

`--ship` writes the heads into the package. The first run computes tokens, which are kept in the cache.
"""

from __future__ import annotations

import json
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import torch

from mimeval import knn, linear_probe
from mimeval.statistics import Interval, paired_difference
from mimexport.fitting.fitter import FitOptions, Fitter
from mimexport.fitting.unlabelled import SHRINKAGE
from mimexport.heads import Head, save_head
from mimexport.measured import FILE, Measured
from mimexport.whitening import Whitening, fit_pca

DOCS = Path(__file__).parents[1] / "docs" / "aggregators.md"
MARKER = "<!-- written by tools/measure_aggregators.py, below this line -->"
SHIPPED = Path(__file__).parents[1] / "export" / "mimexport" / "assets" / "heads" / "mae-tiny"


@dataclass(frozen=True)
class Row:
    """One line of the table: an aggregator, its options, and whether its head learns from labels.

    Attributes:
        shipped: name of the head in the package, or None.
    """

    agg: str
    options: dict[str, Any]
    labels: bool = False
    shipped: str | None = None

    @property
    def title(self) -> str:
        """As a user would type it."""
        options = " ".join(f"--{key} {value}" for key, value in self.options.items())
        learned = {True: ", labels", False: ""}[self.labels]
        return f"`{self.agg} {options}`".replace(" `", "`") + learned


ROWS = [
    Row("cls", {}, shipped="cls"),
    Row("mean", {}, shipped="mean"),
    Row("cls+mean", {}),
    Row("max", {}),
    Row("gem", {}),
    Row("center", {}),
    Row("center-weighted", {}, shipped="center-weighted"),
    Row("attn-mean", {}),
    Row("attn-min-entropy", {}),
    *(
        Row("topk", {"score": score, "k": k}, shipped="topk" if (score, k) == ("center-norm", "75%") else None)
        for score in ("center-norm", "input-norm", "norm", "cls-attention")
        for k in ("25%", "50%", "75%")
    ),
    Row("topk", {"score": "learned"}, shipped="topk-learned"),
    Row("abmilp", {}, shipped="abmilp-unlabelled"),
    Row("abmilp", {"prior": "center"}, shipped="abmilp-center-unlabelled"),
    Row("abmilp", {}, labels=True, shipped="abmilp"),
    Row("abmilp", {"depth": 2}, labels=True),
    Row("ep", {}, labels=True, shipped="ep"),
    Row("simpool", {}, labels=True),
    Row("aim", {}, labels=True),
]


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True))
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for tokens.")
@click.option("--ship", is_flag=True, help="Write the heads into the package.")
@click.option("--probe/--no-probe", default=True, help="Linear probes take most of the time.")
@click.option("--row", "titles", multiple=True, help="Measure these rows alone, and [cls]; the page keeps the others.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("reports/aggregators.json"), show_default=True)
def main(archive: Path, cache: Path, ship: bool, probe: bool, titles: tuple[str, ...], results: Path) -> None:
    """Measure every row; rows that `results` already holds are not measured again."""
    if unknown := set(titles) - {row.title for row in ROWS}:
        raise click.BadParameter(f"no row {', '.join(sorted(unknown))}; there are: {', '.join(r.title for r in ROWS)}")
    if titles and ship:
        raise click.UsageError("--ship needs every row, so it does not go with --row")
    rows = [row for row in ROWS if not titles or row.title in (ROWS[0].title, *titles)]
    train, train_labels, train_digest = read_part(archive, "train/")
    test, test_labels, test_digest = read_part(archive, "val/")
    results.parent.mkdir(parents=True, exist_ok=True)
    stored: dict[str, dict[str, Any]] = json.loads(results.read_text()) if results.exists() else {}
    for row in rows:
        if row.title in stored and (stored[row.title]["probed"] or not probe):
            continue
        started = time.perf_counter()
        options = FitOptions(
            model="mae-tiny", agg=row.agg, images=train, labels=train_labels if row.labels else None,
            digest=train_digest, cache=cache, agg_options=row.options,
        )  # fmt: skip
        fitter = Fitter(options)
        head = fitter.fit()
        seconds = time.perf_counter() - started
        tokens = [fitter.tokens(images, digest, "") for images, digest in ((train, train_digest), (test, test_digest))]
        plain = [fitter.vectors(head, part, whitened=False) for part in tokens]
        views = [fitter.vectors(head, part, whitened=True) for part in tokens]
        pca = Whitening(*fit_pca(torch.from_numpy(plain[0]), SHRINKAGE))
        with torch.inference_mode():
            principal = [pca(torch.from_numpy(part)).numpy() for part in plain]
        spaces = {"": plain, ", PCA-whitened": principal, ", two-view-whitened": views}
        right = {
            f"knn{space}": knn.predict(part[0], train_labels, part[1]) == test_labels for space, part in spaces.items()
        }
        # Probes take minutes: those of whitened vectors are fitted for the choices a user is offered a head for.
        for space, part in spaces.items() if probe else ():
            if not space or row.shipped:
                right[f"linear{space}"] = linear_probe.predict(part[0], train_labels, part[1]) == test_labels
        stored[row.title] = {
            "seconds": round(seconds, 1),
            "recall": head.figures["two_view_recall_at_1"],
            "probed": probe,
        } | {name: np.packbits(values).tolist() for name, values in right.items()}
        results.write_text(json.dumps(stored))
        accuracy = {name: round(100 * float(values.mean()), 2) for name, values in right.items()}
        click.echo(f"{row.title}: {accuracy}, fitted in {seconds:.0f} s", err=True)
        if ship and row.shipped:
            save_head(_with_figures(head, accuracy, archive), SHIPPED / f"{row.shipped}.safetensors")
    _write_table(stored, len(test), len(train))
    if ship:
        _write_measured(stored, len(test))
    click.echo(f"{DOCS}")


def read_part(archive: Path, part: str) -> tuple[list[bytes], np.ndarray, str]:
    """Return files, labels and digest of one part of a zip of part/class/image."""
    with zipfile.ZipFile(archive) as opened:
        names = sorted(name for name in opened.namelist() if name.startswith(part) and name.endswith(".JPEG"))
        labels = np.unique([name.split("/")[1] for name in names], return_inverse=True)[1]
        return [opened.read(name) for name in names], labels, f"{archive.name}:{part}:{len(names)}"


def _with_figures(head: Head, accuracy: dict[str, float], archive: Path) -> Head:
    figures = head.figures | {"accuracy_percent": accuracy, "measured_on": f"{archive.name}, validation images"}
    return replace(head, figures=figures)


def _write_measured(stored: dict[str, dict[str, Any]], images: int) -> None:
    """Write what training-free aggregators gain or lose, for `mimexport build` to say."""
    baseline = stored[ROWS[0].title]
    measured = []
    for row in ROWS[1:]:
        if (row.shipped and "unlabelled" in row.shipped) or row.labels or row.options.get("score") == "learned":
            continue
        share = row.options.get("k")
        differences = {
            metric: paired_difference(_right(stored[row.title], metric, images), _right(baseline, metric, images))
            for metric in ("knn", "linear")
            if metric in stored[row.title] and metric in baseline
        }
        measured.append(
            Measured(
                agg=row.agg,
                params={key: value for key, value in row.options.items() if key != "k"},
                share=None if share is None else float(share.removesuffix("%")) / 100,
                differences={
                    {"knn": "k-NN", "linear": "linear probe"}[metric]: tuple(
                        round(100 * part, 2) for part in (found.value, found.low, found.high)
                    )
                    for metric, found in differences.items()
                },
            )
        )
    raw = msgspec.json.format(msgspec.json.encode(measured), indent=1)
    (SHIPPED.parents[1] / FILE).write_bytes(raw + b"\n")


def _right(entry: dict[str, Any], metric: str, images: int) -> np.ndarray:
    return np.unpackbits(np.array(entry[metric], np.uint8))[:images].astype(float)


def _write_table(stored: dict[str, dict[str, Any]], images: int, training: int) -> None:
    """Write the rows of `stored` into the page, which keeps those it has of others."""
    spaces = ("", ", PCA-whitened", ", two-view-whitened")
    columns = [method + space for method in ("knn", "linear") for space in spaces]
    prose, _, table = DOCS.read_text(encoding="utf-8").partition(MARKER)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines() if line.startswith("| `")}
    for row in ROWS:
        if row.title in stored:
            lines[row.title] = f"| {' | '.join([row.title, *_cells(stored, row.title, columns, images)])} |"
    titles = [column.replace("knn", "k-NN").replace("linear", "linear probe") for column in columns]
    head = f"| aggregator | {' | '.join(titles)} | two-view recall |"
    ordered = [lines[row.title] for row in ROWS if row.title in lines]
    table = "\n".join([head, "|---" * (len(columns) + 2) + "|", *ordered])
    DOCS.write_text(
        f"{prose}{MARKER}\n\n{table}\n\n{images:,} test images, {training:,} training images.\n", encoding="utf-8"
    )


def _cells(stored: dict[str, dict[str, Any]], title: str, columns: list[str], images: int) -> list[str]:
    cells = []
    baseline = ROWS[0].title
    for column in columns:
        if column not in stored[title] or column not in stored[baseline]:
            cells.append("")
            continue
        values = _right(stored[title], column, images)
        difference = paired_difference(values, _right(stored[baseline], column, images))
        shown = "" if title == baseline else f" ({_signed(difference)})"
        cells.append(f"{100 * values.mean():.1f}{shown}")
    return [*cells, f"{100 * stored[title]['recall']:.1f}"]


def _signed(difference: Interval) -> str:
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


if __name__ == "__main__":
    main()
