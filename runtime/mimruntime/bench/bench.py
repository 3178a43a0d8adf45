"""The steps of a benchmark: measure each engine alone, then pairs of engines alternately."""

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
from mimruntime.bench.matrix import matrix_rates
from mimruntime.bench.measure import Figures, Peer, Ratio, flop_per_image, in_turn, measure
from mimruntime.cpus import describe_cpu
from mimruntime.decode import decode
from mimruntime.decoders import Decode
from mimruntime.embedder import Embedder
from mimruntime.engines import ENGINES
from mimruntime.engines.base import Engine
from mimruntime.engines.opening import open_for, precision_of
from mimruntime.errors import EngineError, ImageError, MimError, MissingExtraError, UnknownNameError
from mimruntime.preprocess import to_pixels
from mimruntime.reference import load_reference

_DECODED = 64
"""Number of images in the measurement with decoding."""


@dataclass(frozen=True, slots=True)
class Report:
    """Results of a benchmark.

    Attributes:
        artifact: path of the artifact.
        machine: description of the CPU.
        matrix_gflops: measured rate of matrix products, GFLOP/s, by precision.
        runners: figures of engines, then of peers.
        left_out: engines and peers that do not run on this machine, with the reason.
        ratios: speed of the fastest engine divided by that of each other runner.

    """

    artifact: str
    machine: str
    matrix_gflops: dict[str, float]
    runners: list[Figures]
    left_out: dict[str, str]
    ratios: list[Ratio]


def bench(
    path: Path,
    engines: Sequence[str],
    *,
    provider: str | None = None,
    peers: Sequence[Peer] = (),
    images: Sequence[Path] = (),
    decode: Decode = "threads",
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    seconds: float = 2.0,
    pairs: int = 7,
    report: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure engines and peers on one artifact. If several engines are given, those that do not run are skipped.

    Args:
        path: the artifact folder.
        engines: names in `mimruntime.engines.ENGINES`.
        provider: the hardware of the engines, by their own name; None takes the compiled engine's, else the CPU.
        peers: other ways to run the same weights; used only on hardware that an engine also uses.
        images: photographs, of which the first 64 readable ones are used; if empty, the artifact's synthetic reference
            images are used.
        decode: what decodes, in the measurement with decoding; as in `Embedder.open`.
        batches: batch sizes to measure.
        seconds: time per runner and batch size.
        pairs: number of paired runs per ratio.
        report: called with one line at the start of each step.

    Raises:
        MimError: the artifact, or the only engine given, does not run.

    """
    artifact = Artifact.open(path)
    sources = _readable(images, report) if images else _encoded(load_reference(artifact)[0])
    pixels = _pixels(artifact, sources)
    with contextlib.ExitStack() as stack:
        opened, left_out = _open_engines(artifact, engines, provider, stack, report)
        runners = [
            Figures(name, f"{_describe(engine, artifact)}, {'tuned' if engine.compiled else 'not compiled'}")
            for name, engine in opened.items()
        ]
        ours = len(runners)
        hardware = {_on_gpu(engine) for engine in opened.values()}
        asked = [peer for peer in peers if peer.on_gpu in hardware]
        found, missing = _open_peers(asked, pixels, stack, report)
        runners += [Figures(name, f"peer, {_describe(engine, artifact)}") for name, engine in found.items()]
        opened, left_out = opened | found, left_out | missing
        rates = matrix_rates()
        for figures in runners:
            report(f"{figures.name}: batches of {', '.join(map(str, batches))}")
            measure(figures, opened[figures.name], pixels, batches, seconds)
            figures.share = _share(figures, opened[figures.name], artifact, rates)
        ratios = _ratios(runners, opened, pixels, pairs, ours, report)
    for figures in runners[:ours]:
        report(f"{figures.name}: decoding, cold start")
        figures.with_decoding, figures.spent = _with_decoding(artifact.path, figures, sources, provider, decode)
        seconds_cold, peak = cold_start(artifact.path, figures.name, figures.best_batch, provider)
        figures.cold_start_s, figures.peak_mib = round(seconds_cold, 2), round(peak, 1)
    matrix_gflops = {name: round(rate / 1e9, 1) for name, rate in rates.items()}
    return Report(str(path), describe_cpu(), matrix_gflops, runners, left_out, ratios)


def _open_engines(
    artifact: Artifact,
    names: Sequence[str],
    provider: str | None,
    stack: contextlib.ExitStack,
    report: Callable[[str], None],
) -> tuple[dict[str, Engine], dict[str, str]]:
    """Return the opened engines, which `stack` closes, and the reason for each that cannot be opened; see `bench`."""
    opened: dict[str, Engine] = {}
    left_out: dict[str, str] = {}
    for name in names:
        if name not in (known := (*ENGINES, "auto")):
            raise UnknownNameError("engine", name, known)
        report(f"{name}: opening")
        try:
            opened[name] = stack.enter_context(open_for(artifact, name, provider=provider))
        except (EngineError, MissingExtraError, UnknownNameError) as error:  # UnknownNameError: the provider is unknown
            if len(names) == 1:
                raise
            left_out[name] = str(error)
    if not opened:
        raise EngineError("; ".join(left_out.values()))
    return opened, left_out


def _open_peers(
    peers: Sequence[Peer], pixels: np.ndarray, stack: contextlib.ExitStack, report: Callable[[str], None]
) -> tuple[dict[str, Engine], dict[str, str]]:
    """Return the peers that open, to be closed by `stack`, and why the others do not."""
    opened: dict[str, Engine] = {}
    left_out: dict[str, str] = {}
    for peer in peers:
        report(f"{peer.name}: opening")
        try:
            opened[peer.name] = stack.enter_context(peer.open(pixels))
        except MimError as error:
            left_out[peer.name] = str(error)
    return opened, left_out


def all_engines() -> list[str]:
    """Return the names of all engines."""
    return list(ENGINES)


def _on_gpu(engine: Engine) -> bool:
    return engine.provider != "cpu"


def _share(figures: Figures, engine: Engine, artifact: Artifact, rates: dict[str, float]) -> float | None:
    """Return the share of the CPU's rate of matrix products; None on a GPU, or where the rate is not known."""
    rate = None if _on_gpu(engine) else rates.get(precision_of(artifact, engine))
    if rate is None or artifact.manifest.graph.precision == "int8":  # whose file does not tell the weights
        return None
    return round(max(figures.images_per_second.values()) * _flop(artifact) / rate, 3)


def _describe(engine: Engine, artifact: Artifact) -> str:
    threads = "" if engine.threads is None else f", {engine.threads} threads, {engine.streams} streams"
    return f"{precision_of(artifact, engine)}, {engine.version} on {engine.provider}{threads}"


def _ratios(
    runners: Sequence[Figures],
    opened: dict[str, Engine],
    pixels: np.ndarray,
    pairs: int,
    ours: int,
    report: Callable[[str], None],
) -> list[Ratio]:
    best = max(runners[:ours], key=lambda one: max(one.images_per_second.values()))
    others = [(one.name, opened[one.name], one.best_batch) for one in runners if one is not best]
    report(f"{best.name} in turn with {', '.join(name for name, _, _ in others) or 'nothing'}")
    return in_turn((best.name, opened[best.name], best.best_batch), others, pixels, pairs)


def _with_decoding(
    path: Path, figures: Figures, sources: Sequence[bytes], provider: str | None, by: Decode
) -> tuple[float, str]:
    batch = figures.best_batch
    files = [sources[index % len(sources)] for index in range(max(_DECODED, 2 * batch))]
    with Embedder.open(path, engine=figures.name, provider=provider, batch_size=batch, decode=by) as embedder:
        embedder.embed(files[:batch])
        embedder.times.clear()
        started = time.perf_counter()
        embedder.embed(files)
        seconds = time.perf_counter() - started
        return round(len(files) / seconds, 2), embedder.times.describe(seconds)


def _readable(images: Sequence[Path], report: Callable[[str], None]) -> list[bytes]:
    sources: list[bytes] = []
    for path in images:
        if len(sources) == _DECODED:
            break
        try:
            decode(path)
        except ImageError as error:
            report(f"left out: {error}")
        else:
            sources.append(path.read_bytes())
    if not sources:
        raise ImageError(f"none of {len(images)} images can be read; first: {images[0]}")
    return sources


def _pixels(artifact: Artifact, sources: Sequence[bytes]) -> np.ndarray:
    return np.stack([to_pixels(decode(source), artifact.manifest.preprocess) for source in sources[:16]])


def _encoded(images: np.ndarray) -> list[bytes]:
    """Encode images, uint8 (n, H, W, 3), as JPEG files."""
    files = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def _flop(artifact: Artifact) -> float:
    """Return an estimate of the floating-point operations per image; the graph's files are about 99 % weights."""
    manifest = artifact.manifest
    rows, columns = manifest.backbone.grid
    stored = sum(file.stat().st_size for file in artifact.path.glob(f"{manifest.graph.file}*"))
    width = {"fp32": 4, "fp16": 2, "bf16": 2}[manifest.graph.precision]
    return flop_per_image(stored / width, rows * columns + manifest.backbone.prefix_tokens, manifest.backbone.dim)
