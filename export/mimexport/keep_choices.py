"""What fewer patches would give an artifact: images/s of its engines, and how near its vectors stay to the full encoder's."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mimexport.backbone import Backbone
from mimexport.embedding_model import EmbeddingModel
from mimexport.fitting.unlabelled import two_view_recall
from mimexport.fitting.views import WHOLE, show
from mimexport.graph import FILE, export_graph
from mimexport.precision_loss import embed, neighbour_overlap
from mimexport.references import References
from mimruntime.artifact import Artifact
from mimruntime.engines import open_engine
from mimruntime.engines.base import EMBEDDING, Engine
from mimruntime.errors import ImageError, OptionError
from mimruntime.manifest import Preprocess
from mimruntime.reference import load_reference

EVERYTHING = "100%"
ENOUGH = 0.95
"""Share of the full encoder's two-view recall that the choice that is named must keep."""
MOST_IMAGES = 2000
_LEAST_IMAGES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRequest:
    """What to compare.

    Attributes:
        keeps: schedules as `build` takes them; everything is always among them, and first.
        rule: which patches stay; None takes the default.
        engines: names of engines.
        batches: sizes of batches.
        pairs: runs of each in turn with the full encoder.
        images: of which vectors are compared, at most `MOST_IMAGES`; none leaves that out.
        weights: the checkpoint of an artifact whose weights came from a file.
        provider: hardware of the engines; None takes each engine's default.

    """

    keeps: Sequence[str]
    rule: str | None
    engines: Sequence[str]
    batches: Sequence[int]
    pairs: int
    images: Sequence[Path] = ()
    weights: Path | None = None
    provider: str | None = None


class Speed(NamedTuple):
    """Images/s, and these as a multiple of the full encoder's: the median of runs in turn, and the middle half."""

    images_per_second: float
    ratio: float
    low: float
    high: float


@dataclass(slots=True)
class KeepChoice:
    """What was found of one schedule.

    Attributes:
        keep: the schedule.
        operations: about the share of the full encoder's operations that its blocks need.
        speeds: by engine and batch.
        recall: how often two random views of an image find each other among the other images; None without images.
        neighbours: share of the 10 nearest images by the full encoder's vectors that are still among the nearest.

    """

    keep: str
    operations: float
    speeds: dict[tuple[str, int], Speed]
    recall: float | None = None
    neighbours: float | None = None


def compare_keeps(artifact: Artifact, request: KeepRequest, report: Callable[[str], None]) -> list[KeepChoice]:
    """Export the artifact's encoder with every schedule, and measure speed and vectors.

    Raises:
        OptionError: a schedule that cannot be read, an artifact in int8, or too few images.
        MimError: the artifact's weights or head are not at hand, or do not fit.

    """
    if artifact.manifest.graph.precision == "int8":
        raise OptionError(f"{artifact.path} is int8, whose graph is made from calibration; compare an artifact in fp32")
    views = _views(request.images, artifact.manifest.preprocess) if request.images else []
    timed = np.resize(load_reference(artifact)[0], (max(request.batches), *_pixel_shape(artifact)))
    choices: list[KeepChoice] = []
    expected: np.ndarray | None = None
    with tempfile.TemporaryDirectory(prefix="mimexport-keep-") as folder, contextlib.ExitStack() as stack:
        full: dict[str, Engine] = {}
        for keep in dict.fromkeys((EVERYTHING, *request.keeps)):
            report(f"--keep {keep}: exporting")
            model = References(request.weights).model_keeping(artifact, keep, request.rule)
            if not choices and artifact.manifest.embedding.whitening is not None and model.whitening is None:
                report("comparing plain vectors: the whitening fits only all patches")
            graph = _export(model, artifact, Path(folder) / str(len(choices)))
            report(f"--keep {keep}: measuring")
            with contextlib.ExitStack() as here:
                opened = {name: open_engine(name, graph, provider=request.provider) for name in request.engines}
                for engine in opened.values():
                    (here if full else stack).callback(engine.close)
                full = full or opened
                speeds = {
                    (name, size): run_in_turn(engine, full[name], (timed[:size], timed[:size]), request.pairs)
                    for name, engine in opened.items()
                    for size in request.batches
                }
                choice = KeepChoice(keep, share_of_operations(model.backbone), speeds)
                if views:
                    whole, *two = (_embed(opened[request.engines[0]], view) for view in views)
                    expected = whole if expected is None else expected
                    choice.neighbours = neighbour_overlap(whole, expected)
                    choice.recall = two_view_recall(*map(torch.from_numpy, two))
            choices.append(choice)
    return choices


def run_in_turn(engine: Engine, full: Engine, batches: tuple[np.ndarray, np.ndarray], pairs: int) -> Speed:
    """Return the speed of an engine, run A B A B … with that of the full encoder, after one run of each to warm up.

    Args:
        engine: whose speed it is.
        full: what it is a multiple of.
        batches: pixels of as many images for the one and for the other.
        pairs: runs of each that count.

    """
    seconds = np.array(
        [[_seconds(one, batch) for one, batch in zip((engine, full), batches, strict=True)] for _ in range(pairs + 1)]
    )[1:]
    ratio, low, high = np.percentile(seconds[:, 1] / seconds[:, 0], (50, 25, 75))
    return Speed(len(batches[0]) / float(np.median(seconds[:, 0])), float(ratio), float(low), float(high))


def _seconds(engine: Engine, batch: np.ndarray) -> float:
    started = time.perf_counter()
    engine.run(batch)
    return time.perf_counter() - started


def _embed(engine: Engine, pixels: np.ndarray) -> np.ndarray:
    return embed(lambda part: engine.run(part)[EMBEDDING], pixels)


def _pixel_shape(artifact: Artifact) -> tuple[int, int, int]:
    size = artifact.manifest.preprocess.size
    return size, size, 3


def cheapest(choices: Sequence[KeepChoice]) -> KeepChoice | None:
    """Return the choice of fewest operations that keeps `ENOUGH` of the full encoder's recall; None without images."""
    whole = choices[0].recall
    if whole is None:
        return None
    kept = [one for one in choices if one.recall is not None and one.recall >= ENOUGH * whole]
    return min(kept, key=lambda one: one.operations)


def as_lines(choices: Sequence[KeepChoice]) -> Iterator[str]:
    """Yield a Markdown table, what it says, and the cheapest choice."""
    columns = list(choices[0].speeds)
    seen = choices[0].recall is not None
    heads = [f"{engine}, batch {batch}" for engine, batch in columns]
    heads += ["two views find each other", "10 nearest kept"] if seen else []
    yield f"| {' | '.join(['--keep', 'operations', *heads])} |"
    yield "|---" * (len(heads) + 2) + "|"
    for one in choices:
        cells = [speed_text(one.speeds[key], one.operations) for key in columns]
        if one.recall is not None and one.neighbours is not None:
            cells += [f"{100 * one.recall:.1f} %", f"{100 * one.neighbours:.1f} %"]
        yield f"| {' | '.join([one.keep, f'{1 / one.operations:.2f} × fewer', *cells])} |"
    if columns:
        yield "images/s, × those of everything, and in brackets that ratio divided by the ratio of operations"
    best = cheapest(choices)
    if best is not None:
        yield f"the cheapest whose two views find each other {100 * ENOUGH:.0f} % as often as with everything: --keep {best.keep}"


def speed_text(speed: Speed, operations: float) -> str:
    """Return a speed for people: images/s, ratio to everything, and that ratio divided by the ratio of operations."""
    return f"{speed.images_per_second:,.0f}/s, {speed.ratio:.2f} × ({speed.ratio * operations:.2f})"


def share_of_operations(backbone: Backbone) -> float:
    """Return about the share of the full encoder's operations that the blocks of `backbone` need."""
    shape, keep = backbone.shape, backbone.keep
    whole = shape.grid[0] * shape.grid[1]
    counts, left = [], whole
    for number in range(len(backbone.blocks) + 1):
        left = next((stage.patches for stage in keep.stages if stage.block == number), left) if keep else left
        counts.append(left)
    products = sum(
        parameter.numel() for name, parameter in backbone.last_block.named_parameters() if "weight" in name
    )  # a multiplication each for every token; attention adds two for every pair of tokens and channel

    def need(patches: int) -> float:
        tokens = shape.prefix + patches
        return tokens * (products + 2 * tokens * shape.dim)

    return sum(map(need, counts)) / (len(counts) * need(whole))


def _export(model: EmbeddingModel, artifact: Artifact, folder: Path) -> Path:
    folder.mkdir()
    model.set_precision(artifact.manifest.graph.precision)
    export_graph(model, folder, artifact.manifest.preprocess.size)
    return folder / FILE


def _views(images: Sequence[Path], preprocess: Preprocess) -> list[np.ndarray]:
    """Return the whole images and two random views of each, uint8 (n, size, size, 3); those that cannot be read are left out."""
    found: list[tuple[np.ndarray, ...]] = []
    for index, path in enumerate(images):
        if len(found) == MOST_IMAGES:
            break
        with contextlib.suppress(ImageError):
            found.append(tuple(show(path, index, view, 0, preprocess) for view in (WHOLE, 0, 1)))
    if len(found) < _LEAST_IMAGES:
        raise OptionError(f"--images: {len(found)} can be read; expected at least {_LEAST_IMAGES} to compare vectors")
    return [np.stack(view) for view in zip(*found, strict=True)]
