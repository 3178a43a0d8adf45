"""The findings of an evaluation in sentences: gains, the engines that keep them, and open questions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec

from mimeval.report import TORCH, Gain, Report
from mimeval.statistics import Interval

_CLASSIFIES = ("k-NN", "1-NN", "linear probe", "5-shot")
_ENGINES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "stored": "storage as",
}
_NOTHING = 0.0005
"""Loss of a gain, as a fraction of the images, that rounds to zero at one decimal of a point."""

GLOSSARY = {
    "gain": "accuracy of a model minus accuracy of its baseline, [cls], in percentage points",
    "[a, b]": "the 95 % confidence interval: in 19 of 20 such evaluations on other images, it contains the true value",
    "change": "gain on the engine minus gain in torch, on the same images",
    "margin": "the tolerated loss of gain",
    "k-NN": "an image gets the class of its 20 nearest training images, weighted by cosine",
    "linear probe": "a linear classifier trained on frozen vectors",
    "5-shot": "an image gets the class with the nearest mean of five training images; averaged over 20 draws of the five",
    "recall@k": "share of queries with a correct image among the first k results",
    "mAP": "mean average precision of the ranked results; 100 if all correct images come first",
    "fitted on": "the vectors that the classifier was trained on: torch's, or the engine's own",
    "McNemar p": "probability by chance of so uneven a split of the images that only one side gets right",
    "top-10 overlap": "share of the ten nearest images in torch that are among the ten nearest on the engine",
    "Jaccard": "overlap of the selected patches in torch and on the engine",
    "images needed": "estimated number of test images that would decide the row",
}
"""Terms of the report, with a line on each."""


def labelled(report: Report) -> Report:
    """Return the report with the display name of every model."""

    def renamed(text: str) -> str:
        for title, label in sorted(
            report.labels.items(), key=lambda pair: -len(pair[0])
        ):  # a title may be a prefix of another
            text = re.sub(rf"(?<![\w+./\[-]){re.escape(title)}(?![\w+/\]-])", label.replace("\\", r"\\"), text)
        return text

    def model(row: msgspec.Struct) -> dict[str, str]:
        return {
            name: report.labels.get(getattr(row, name), getattr(row, name))
            for name in ("model", "baseline", "stronger", "weaker", "right", "wrong")
            if name in row.__struct_fields__
        }

    rows = {
        name: [msgspec.structs.replace(row, **model(row)) for row in getattr(report, name)]
        for name in ("scores", "gains", "drifts", "samples", "baselines", "examples")
    }
    return msgspec.structs.replace(
        report, reasons=[*map(renamed, report.reasons)], notes=[*map(renamed, report.notes)], labels={}, **rows
    )


def with_engine_names(report: Report) -> Report:
    """Return the report with every deployment under its `engine_name`."""
    rows = {
        name: [msgspec.structs.replace(row, deployment=engine_name(row.deployment)) for row in getattr(report, name)]
        for name in ("scores", "gains", "drifts", "samples")
    }
    return msgspec.structs.replace(report, **rows)


def headlines(report: Report) -> list[str]:
    """Return a paragraph for each judged model: its gain in torch, and the engines that keep it."""
    deciding = [gain for gain in report.gains if gain.decides]
    models = dict.fromkeys((gain.model, gain.baseline) for gain in deciding)
    return [_headline(report, *pair, [gain for gain in deciding if gain.model == pair[0]]) for pair in models]


def open_questions(report: Report) -> list[str]:
    """Return a sentence on each undecided question with the number of images that would decide it, smallest first."""
    rows = [gain for gain in report.gains if gain.decides and gain.found.verdict == "undecided"]
    # Take the engine that needs the fewest images, since all engines wait for the gain in torch.
    unproven = {
        gain.model: gain
        for gain in sorted(rows, key=lambda gain: -(gain.found.images_needed or math.inf))
        if gain.found.reference.low <= 0
    }
    found = [
        (gain.found.images_needed, f"Is {gain.model} better than {gain.baseline} at all? {_needed([gain])}")
        for gain in unproven.values()
    ]
    for deployment in dict.fromkeys(gain.deployment for gain in rows):
        here = [gain for gain in rows if gain.deployment == deployment and gain.model not in unproven]
        names = ", ".join(dict.fromkeys(gain.model for gain in here))
        if here:
            needed = [gain.found.images_needed for gain in here]
            most = None if None in needed else max(filter(None, needed), default=None)
            found.append((most, f"Does {engine_name(deployment)} keep the gain of {names}? {_needed(here)}"))
    return [text for _, text in sorted(found, key=lambda pair: (pair[0] is None, pair[0] or 0))]


def counted_from(report: Report) -> list[str]:
    """Return a sentence on the choice of each baseline from which gains are counted."""
    used = {gain.baseline for gain in report.gains}
    return [chosen.sentence() for chosen in report.baselines if chosen.stronger in used]


def engine_name(deployment: str) -> str:
    """Return the display name of a deployment, such as 'ONNX Runtime fp32'."""
    engine, _, rest = deployment.partition(" ")
    return f"{_ENGINES.get(engine, engine)} {rest}".strip()


def compared(metric: str, model: str, baseline: str, accuracies: tuple[Interval, Interval], change: Interval) -> str:
    """Return two accuracies and their paired difference as a sentence."""
    first, second = (100 * part.value for part in accuracies)
    value, low, high = (100 * part for part in (change.value, change.low, change.high))
    gain = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    if metric in _CLASSIFIES:
        return f"{model} finds the right class for {first:.1f} of 100 images, {baseline} for {second:.1f}: {gain} ({metric})."
    return f"{metric} of {model} is {first:.1f}, of {baseline} {second:.1f}: {gain}."


def _headline(report: Report, model: str, baseline: str, gains: Sequence[Gain]) -> str:
    accuracy = {row.model: row.accuracy for row in report.scores if _in_torch(row.deployment, row.metric, report)}
    reference = gains[0].found.reference
    text = compared(report.metric, model, baseline, (accuracy[model], accuracy[baseline]), reference)
    if reference.high < 0:
        return f"{text} It is worse."
    if reference.low <= 0:
        return f"{text} It is not shown to be better."
    return " ".join([text, *_on_engines(gains)])


def _in_torch(deployment: str, metric: str, report: Report) -> bool:
    return deployment == TORCH and metric == report.metric


def _on_engines(gains: Sequence[Gain]) -> list[str]:
    by_engine: dict[str, list[Gain]] = {}
    for gain in gains:
        by_engine.setdefault(gain.deployment, []).append(gain)
    kept, narrower, lost, unknown = [], [], [], []
    for deployment, rows in by_engine.items():
        name, change = engine_name(deployment), min(row.found.change.value for row in rows)
        verdicts = {row.found.verdict for row in rows}
        if "fail" in verdicts:
            lost.append(f"{name} loses {-100 * change:.1f} points of it.")
        elif "undecided" in verdicts:
            unknown.append(name)
        elif change >= -_NOTHING:
            kept.append(name)
        else:
            narrower.append(f"{name} ({100 * change:+.1f})")
    margin = f"{100 * gains[0].found.margin:g}"
    return [
        *([f"{_listed(kept)} {'keeps' if len(kept) == 1 else 'keep'} all of it."] if kept else []),
        *([f"Within the margin of {margin} points: {_listed(narrower)}."] if narrower else []),
        *lost,
        *([f"Not decided: {_listed(unknown)}."] if unknown else []),
    ]


def _needed(gains: Sequence[Gain]) -> str:
    seen = f"{gains[0].found.images:,} were seen"
    if gains[0].found.reference_images != gains[0].found.images:
        seen += f" on the engine, {gains[0].found.reference_images:,} in torch"
    needed = [gain.found.images_needed for gain in gains]
    if None in needed:
        return f"As estimated, no number of images would decide; {seen}."
    return f"About {max(filter(None, needed), default=0):,} test images would decide; {seen}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
