"""The flow of a benchmark: every engine by itself, then ratios in turn."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mimruntime.artifact import Artifact
from mimruntime.bench.child import cold_start
from mimruntime.bench.measure import Figures, Peer, Ratio, Runner, flop_per_image, in_turn, matrix_rate, measure
from mimruntime.cpus import describe_cpu
from mimruntime.embedder import Embedder
from mimruntime.engines import ENGINES, open_for
from mimruntime.errors import EngineError, MissingExtraError
from mimruntime.reference import load_reference

_DECODED = 64
"""Images of the measurement that includes decoding."""


@dataclass(frozen=True, slots=True)
class Report:
    """A benchmark.

    Attributes:
        machine: CPU, and what it reaches in float32 matrix products, GFLOP/s.
        runners: engines first, then peers.
        left_out: engines that do not run here, with the reason.
        ratios: of the fastest engine to every other runner.

    """

    artifact: str
    machine: str
    matrix_gflops: float
    runners: list[Figures]
    left_out: dict[str, str]
    ratios: list[Ratio]


def bench(
    path: Path,
    engines: Sequence[str],
    *,
    peers: Sequence[Peer] = (),
    images: Sequence[Path] = (),
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    seconds: float = 2.0,
    pairs: int = 7,
    report: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure engines and peers on one artifact; engines of a list of several that do not run here are left out.

    Args:
        path: the artifact.
        engines: names of `mimruntime.engines.ENGINES`.
        peers: other ways to run the same weights.
        images: real photographs; without any, the artifact's drawn reference images.
        batches: sizes to measure.
        seconds: for every runner and batch.
        pairs: of each ratio.
        report: told one line at the start of every step.

    Raises:
        MimError: the artifact or the only engine asked for does not run.

    """
    artifact = Artifact.open(path)
    sources: list[bytes] = [one.read_bytes() for one in images] or _encoded(load_reference(artifact)[0])
    runners: list[Figures] = []
    left_out: dict[str, str] = {}
    opened: dict[str, Runner] = {}
    with contextlib.ExitStack() as stack:
        for name in engines:
            report(f"{name}: opening")
            try:
                engine = stack.enter_context(open_for(artifact, name))
            except (EngineError, MissingExtraError) as error:
                if len(engines) == 1:
                    raise
                left_out[name] = str(error)
                continue
            tuned = "tuned" if engine.compiled else "not compiled"
            precision = engine.precision or artifact.manifest.graph.precision
            runners.append(Figures(name, f"{precision}, {engine.version} on {engine.provider}, {tuned}"))
            opened[name] = engine
        if not runners:
            raise EngineError("; ".join(left_out.values()))
        ours = len(runners)
        for peer in peers:
            report(f"{peer.name}: opening")
            try:
                opened[peer.name] = peer.open()
            except (EngineError, MissingExtraError) as error:
                left_out[peer.name] = str(error)
                continue
            runners.append(Figures(peer.name, "peer"))
            stack.callback(opened[peer.name].close)
        pixels = _pixels(artifact, sources)
        rate = matrix_rate()
        for figures in runners:
            report(f"{figures.name}: batches of {', '.join(map(str, batches))}")
            measure(figures, opened[figures.name], pixels, batches, seconds)
            figures.share = round(max(figures.images_per_second.values()) * _flop(artifact) / rate, 3)
        ratios = _ratios(runners, opened, pixels, pairs, ours, report)
    for figures in runners[:ours]:
        report(f"{figures.name}: decoding, cold start")
        figures.with_decoding = _with_decoding(artifact.path, figures, sources)
        seconds_cold, peak = cold_start(artifact.path, figures.name, figures.best_batch)
        figures.cold_start_s, figures.peak_mib = round(seconds_cold, 2), round(peak, 1)
    return Report(str(path), describe_cpu(), round(rate / 1e9, 1), runners, left_out, ratios)


def all_engines() -> list[str]:
    """Return every engine of the table."""
    return list(ENGINES)


def _ratios(
    runners: Sequence[Figures],
    opened: dict[str, Runner],
    pixels: np.ndarray,
    pairs: int,
    ours: int,
    report: Callable[[str], None],
) -> list[Ratio]:
    best = max(runners[:ours], key=lambda one: max(one.images_per_second.values()))
    others = [(one.name, opened[one.name], one.best_batch) for one in runners if one is not best]
    report(f"{best.name} in turn with {', '.join(name for name, _, _ in others) or 'nothing'}")
    return in_turn((best.name, opened[best.name], best.best_batch), others, pixels, pairs)


def _with_decoding(path: Path, figures: Figures, sources: Sequence[bytes]) -> float:
    files = [sources[index % len(sources)] for index in range(max(_DECODED, 2 * figures.best_batch))]
    with Embedder.open(path, engine=figures.name, batch_size=figures.best_batch) as embedder:
        embedder.embed(files[: figures.best_batch])
        started = time.perf_counter()
        embedder.embed(files)
        return round(len(files) / (time.perf_counter() - started), 2)


def _pixels(artifact: Artifact, sources: Sequence[bytes]) -> np.ndarray:
    from mimruntime.decode import decode  # noqa: PLC0415
    from mimruntime.preprocess import to_pixels  # noqa: PLC0415

    return np.stack([to_pixels(decode(source), artifact.manifest.preprocess) for source in sources[:16]])


def _encoded(images: np.ndarray) -> list[bytes]:
    """Return uint8 (n, H, W, 3) as JPEG files."""
    files = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def _flop(artifact: Artifact) -> float:
    manifest = artifact.manifest
    rows, columns = manifest.backbone.grid
    stored = sum(file.stat().st_size for file in artifact.path.glob(f"{manifest.graph.file}*"))
    width = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}[manifest.graph.precision]
    return flop_per_image(stored / width, rows * columns + manifest.backbone.prefix_tokens, manifest.backbone.dim)
