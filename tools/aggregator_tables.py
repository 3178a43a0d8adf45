"""Store the results of `measure_aggregators.py`, one file per backbone, and write tables from all of them.

    python tools/aggregator_tables.py

It writes docs/results/aggregators.md, the README's table and the package's `measured.json`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from mimeval.statistics import Interval, paired_difference
from mimexport.known_losses import FILE, AggregatorFigures, BackboneFigures

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "aggregators.md"
README = ROOT / "README.md"
ASSETS = ROOT / "export" / "mimexport" / "assets"
MARKER = "<!-- written by tools/measure_aggregators.py, below this line -->"
BEGIN, END = "<!-- aggregators: written by tools/measure_aggregators.py -->", "<!-- aggregators: end -->"
_WHOLE = 65535
"""Integer that stands for a score of 1 if scores are fractions; they are stored in 16 bits."""
SPACES = ("", ", whitened")
METRICS = ("k-NN", "linear probe", "mAP", "shifted")
TITLES = {"shifted": "k-NN, shifted"}
DEFAULT = "`topk --score center-norm --k 75%`"
SHORT = {
    "`mean`": "mean of all patches",
    DEFAULT: "`topk`, the default",
    "`gem`": "generalised mean",
    "`abmilp`": "scorer learned **without labels**",
    "`ep`, labels": "queries learned with labels",
}
"""Rows of the README."""


def write(stored: dict[str, Any], file: Path) -> None:
    """Write the results of a backbone; scores per image are stored as bits, or as 16-bit numbers if fractional."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = {title: {key: _pack(value) for key, value in row.items()} for title, row in stored["rows"].items()}
    stage = file.with_name(f".{file.name}.partial")
    stage.write_text(json.dumps(stored | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    stage.replace(file)


def read(file: Path) -> dict[str, Any]:
    """Return results written by `write`."""
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    stored["rows"] = {
        title: {key: _unpack(value) for key, value in row.items()} for title, row in stored["rows"].items()
    }
    return stored


def summary(found: dict[str, Any]) -> str:
    """Return the mean scores as text, in per cent."""
    return ", ".join(f"{key} {100 * value.mean():.2f}" for key, value in found.items() if isinstance(value, np.ndarray))


def written(folder: Path) -> dict[Path, str]:
    """Return the complete text of the page, the README and the package's file, from the results of all backbones."""
    everything = [read(file) for file in sorted(folder.glob("aggregators-*.json"), reverse=True)]
    prose = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    known = msgspec.json.format(msgspec.json.encode([_known(stored) for stored in everything]), indent=1)
    return {
        PAGE: prose + MARKER + "\n\n" + "\n\n".join(map(_section, everything)) + "\n",
        README: f"{before}{BEGIN}\n{_short(everything)}\n{END}{rest.partition(END)[2]}",
        ASSETS / FILE: known.decode() + "\n",
    }


def strongest(stored: dict[str, Any], space: str) -> str:
    """Return the title of the stronger [cls] in a space, chosen on training images."""
    rows = stored["rows"]
    return max(
        (title for title in rows if rows[title]["agg"] == "cls"), key=lambda t: rows[t][f"training{space}"].mean()
    )


def _section(stored: dict[str, Any]) -> str:
    sizes, rows = stored["sizes"], stored["rows"]
    columns = [(metric, space) for metric in METRICS for space in SPACES]
    head = [
        "aggregator",
        "norm",
        *(f"{TITLES.get(metric, metric)}{space}" for metric, space in columns),
        "two-view recall",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for title, row in rows.items():
        cells = [_cell(stored, title, metric, space) for metric, space in columns]
        lines.append(f"| {' | '.join([title, row['norm'], *cells])} | {100 * row['recall']:.1f} |")
    counts = {name: f"{train:,} to learn from, {test:,} judged" for name, (train, test) in sizes.items()}
    norms = [f"`{agg}` {found['raw']:.1f} / {found['final']:.1f}" for agg, found in stored["norms"].items()]
    best = f"The stronger [cls] is {strongest(stored, '')}, whitened {strongest(stored, SPACES[1])}"
    text = [
        f"## {stored['model']}",
        f"Centred images: {counts['centred']}; shifted: {counts['shifted']}; two views of {stored['views']:,} images; mAP among"
        f" {stored.get('ranked', sizes['centred'][1]):,}; computed on {stored.get('device', 'cpu')}. {best}: k-NN of the"
        f" training images, each left out in turn, {_choices(stored)}.",
        "\n".join(lines),
        "Without labels and against the mean, k-NN in points:",
        _against_mean(stored),
        f"k-NN of the training images, raw tokens / after the final norm: {', '.join(norms)}.",
    ]
    return "\n\n".join(text)


def _choices(stored: dict[str, Any]) -> str:
    rows = stored["rows"]
    return "; ".join(
        f"{title}{space} {100 * row['training' + space].mean():.1f}"
        for space in SPACES
        for title, row in rows.items()
        if row["agg"] == "cls"
    )


def _against_mean(stored: dict[str, Any]) -> str:
    """Return a table that compares label-free rows with the mean: centred, shifted, and each kind of shift."""
    rows, kinds = stored["rows"], np.array(stored["kinds"])
    chosen = {"shifted": np.ones(len(kinds), bool)}
    for kind in sorted(set(stored["kinds"])):
        chosen[kind] = kinds == kind
    parts: dict[str, Callable[[dict[str, Any]], np.ndarray]] = {"centred": lambda row: row["k-NN"]}
    for name, mask in chosen.items():
        parts[name] = lambda row, mask=mask: row["shifted"][mask]  # type: ignore[misc]
    lines = [f"| aggregator | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    for title, row in rows.items():
        if row["labels"] or row["agg"] == "cls" or title == "`mean`":
            continue
        cells = [_signed(paired_difference(of(row), of(rows["`mean`"]))) for of in parts.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(stored: dict[str, Any], title: str, metric: str, space: str) -> str:
    rows, key = stored["rows"], f"{metric}{space}"
    baseline = strongest(stored, space)
    if key not in rows[title] or key not in rows[baseline]:
        return ""
    values = rows[title][key]
    shown = "" if title == baseline else f" ({_signed(paired_difference(values, rows[baseline][key]))})"
    return f"{100 * values.mean():.1f}{shown}"


def _short(everything: list[dict[str, Any]]) -> str:
    """Return the README's table with both backbones."""
    columns = [(stored, space) for stored in everything for space in SPACES]
    head = ["`--agg`", "what it is", *(f"{stored['model']}{space}" for stored, space in columns)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    best = [f"{100 * s['rows'][strongest(s, space)]['k-NN' + space].mean():.1f}" for s, space in columns]
    lines.append(f"| `cls` | the stronger of raw and normed | {' | '.join(best)} |")
    for title, vector in SHORT.items():
        cells = [_cell(stored, title, "k-NN", space) if title in stored["rows"] else "–" for stored, space in columns]
        lines.append(f"| {title} | {vector} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _known(stored: dict[str, Any]) -> BackboneFigures:
    """Return the figures that `mimexport build` uses for its notes."""
    rows, baseline = stored["rows"], strongest(stored, "")
    measured = []
    for row in rows.values():
        if row["labels"] or row["agg"] in {"cls", "abmilp"} or row["options"].get("score") == "learned":
            continue
        share = row["options"].get("k")
        differences = {
            metric: paired_difference(row[metric], rows[baseline][metric])
            for metric in ("k-NN", "linear probe")
            if metric in row and metric in rows[baseline]
        }
        measured.append(
            AggregatorFigures(
                agg=row["agg"],
                params={key: value for key, value in row["options"].items() if key != "k"},
                share=None if share is None else float(share.removesuffix("%")) / 100,
                differences={
                    metric: (round(100 * d.value, 2), round(100 * d.low, 2), round(100 * d.high, 2))
                    for metric, d in differences.items()
                },
            )
        )
    training, images = stored["sizes"]["centred"]
    return BackboneFigures(
        model=stored["model"], weights_sha256=stored["weights_sha256"], training=training, images=images,
        norms=stored["norms"], rows=measured,
    )  # fmt: skip


def _signed(difference: Interval) -> str:
    return f"{100 * difference.value:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _pack(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.bool_:
        return {"bits": base64.b64encode(np.packbits(value).tobytes()).decode(), "count": len(value)}
    return {"shares": base64.b64encode((value * _WHOLE).round().astype("<u2").tobytes()).decode()}


def _unpack(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"bits", "count"}:
        return np.unpackbits(np.frombuffer(base64.b64decode(value["bits"]), np.uint8), count=value["count"]).astype(
            bool
        )
    if isinstance(value, dict) and value.keys() == {"shares"}:
        return np.frombuffer(base64.b64decode(value["shares"]), "<u2") / _WHOLE
    return value


@click.command()
@click.option("--results", type=click.Path(path_type=Path, exists=True), default=PAGE.parent, show_default=True)
def main(results: Path) -> None:
    """Write the page, the README's table and the package's file from the results of all backbones."""
    for path, text in written(results).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
