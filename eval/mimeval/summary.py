"""What an evaluation found, in sentences: what is gained, which engines keep it, what is open and what would decide it."""

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
"""Loss of a gain, as a share of the images, that one decimal of a point does not show."""

GLOSSARY = {
    "gain": "how many more of 100 images a model gets right than its baseline, [cls], in points",
    "[a, b]": "the 95 % interval: of evaluations like this on other images, 19 of 20 give an interval that holds the true"
    " value",
    "change": "gain on the engine minus gain in torch, on the same images",
    "margin": "the loss of gain that is tolerated",
    "k-NN": "an image gets the class of its 20 nearest training images, weighted by cosine",
    "linear probe": "a linear classifier learned on frozen vectors",
    "5-shot": "an image gets the class whose mean of five known images lies nearest; the mean over 20 draws of the five",
    "recall@k": "share of searches with a right image among the first k",
    "mAP": "how far in front the right images stand in a list of search results; 100 is perfect",
    "fitted on": "whose vectors the classifier learned from: torch's, or the engine's own",
    "McNemar p": "how likely so uneven a split of the images that only one side gets right would be by chance",
    "top-10 overlap": "share of the ten nearest images in torch that are among the ten nearest on the engine",
    "Jaccard": "overlap of the selected patches in torch and on the engine",
    "images needed": "about how many test images would decide the row",
}
"""Terms of the report, each in a line."""


def labelled(report: Report) -> Report:
    """Return the report with every model under the name that people know it by."""

    def renamed(text: str) -> str:
        for title, label in sorted(report.labels.items(), key=lambda pair: -len(pair[0])):  # one may begin another
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
    """Return the report with every deployment under the name that `engine_name` gives it."""
    rows = {
        name: [msgspec.structs.replace(row, deployment=engine_name(row.deployment)) for row in getattr(report, name)]
        for name in ("scores", "gains", "drifts", "samples")
    }
    return msgspec.structs.replace(report, **rows)


def headlines(report: Report) -> list[str]:
    """Return a paragraph for each model that was judged: what it gains in torch, and which engines keep that."""
    deciding = [gain for gain in report.gains if gain.decides]
    models = dict.fromkeys((gain.model, gain.baseline) for gain in deciding)
    return [_headline(report, *pair, [gain for gain in deciding if gain.model == pair[0]]) for pair in models]


def open_questions(report: Report) -> list[str]:
    """Return what is undecided, a sentence each, with the images that would decide it, the nearest first."""
    rows = [gain for gain in report.gains if gain.decides and gain.found.verdict == "undecided"]
    # Of several engines the one that needs fewest images: what they all wait for is the gain in torch.
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
    """Return how each baseline that gains are counted from was found to be the stronger, a sentence each."""
    used = {gain.baseline for gain in report.gains}
    return [chosen.sentence() for chosen in report.baselines if chosen.stronger in used]


def engine_name(deployment: str) -> str:
    """Return a deployment as people call it: 'ONNX Runtime fp32'."""
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
        return f"{text} That it is better is not shown."
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
        return f"No number of images would decide it as it looks; {seen}."
    return f"About {max(filter(None, needed), default=0):,} test images would decide; {seen}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
