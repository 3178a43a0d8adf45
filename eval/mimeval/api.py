"""The Python API: the functions behind the commands `mimexport eval` and `mimexport compare`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from mimeval import comparison, evaluation
from mimeval.accelerator import Accelerator, accelerated
from mimeval.baselines import BuildBaseline
from mimeval.datasets import Dataset, open_dataset
from mimeval.datasets.subset import limited
from mimeval.deployments import parse_engines
from mimeval.feature_store import FeatureStore
from mimeval.models import find_baselines
from mimeval.report import Report
from mimeval.statistics import MARGIN
from mimruntime.artifact import Artifact
from mimruntime.engines.base import Engine
from mimruntime.errors import MissingExtraError
from mimruntime.manifest import TokenNorm

CACHE = Path("~/.cache/mimexport")
"""Default folder of stored features and downloaded data."""
_Path = str | os.PathLike[str]
_TORCH_SIDE = "mimeval.torch_side"
"""Entry point group of the torch side, which this package must not import."""


class TorchSide(Protocol):
    """The interface of the torch side: it opens reference models and builds missing baselines."""

    @property
    def device_text(self) -> str:
        """The device on which the models compute, for a message."""

    @property
    def accelerator(self) -> Accelerator | None:
        """What computes the large products of an evaluation on that device; None on the CPU."""

    def open(self, artifacts: Sequence[Artifact], *, narrow: bool = False) -> Sequence[Engine]:
        """Return the torch model of each artifact; see `mimeval.deployments.OpenReferences`."""

    def build_baseline(self, artifact: Artifact, folder: Path, token_norm: TokenNorm | None = None) -> Artifact:
        """Return the baseline of `artifact`, with the given token norm or the one known to be better."""

    def build_plain(self, model: str, agg: str, folder: Path) -> Artifact:
        """Return the fp32 artifact of an aggregator that learns nothing."""


class Progress(Protocol):
    """Receives the progress of an evaluation."""

    def say(self, line: str) -> None:
        """Report one line about a step."""

    def progress(self, name: str, done: int, total: int) -> None:
        """Report the number of items done and the total of a step."""


class NoProgress:
    """A `Progress` that ignores everything."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def progress(self, name: str, done: int, total: int) -> None:
        """Do nothing."""


NO_PROGRESS = NoProgress()


def evaluate(
    artifacts: Sequence[_Path], *,
    data: str | _Path | Dataset, baseline: _Path | Sequence[_Path] = (), engines: str | Sequence[str] = "all",
    metrics: Sequence[str] = (), limit: int | None = None, train_limit: int | None = None, deployed: int | None = None,
    own: bool = True, stored: Sequence[str] = (), margin: float = MARGIN, seed: int = 0, cache: _Path = CACHE,
    device: str = "auto", torch_side: TorchSide | None = None, progress: Progress = NO_PROGRESS,
) -> Report:  # fmt: skip
    """Measure whether the gain over [cls] in torch is kept on the engines.

    >>> import mimeval
    >>> report = mimeval.evaluate(["artifacts/tiny"], data="folder:labelled", engines="onnxruntime", metrics=["knn"])
    >>> report.verdict in {"pass", "fail", "undecided"}, report.metric
    (True, 'k-NN')

    Args:
        artifacts: the artifacts, or their folders.
        data: a folder or zip of CLASS/image, a name such as "tiny-imagenet" (`mimexport eval --help`), or a `Dataset`.
        baseline: artifacts from which gains are counted. Without any: [cls] of the same backbone, raw or after the final
            norm, whichever is stronger; it is taken from `artifacts` or built.
        engines: "all", or names of engines, optionally with a precision: "openvino:bf16", "torch:fp16".
        metrics: "knn", "linear", "few-shot", "retrieval"; empty means all that the data allow.
        limit: largest number of test images, with balanced classes.
        train_limit: largest number of training images.
        deployed: number of test images that engines see; torch always sees all.
        own: also fit classifiers on each engine's own features of the training images.
        stored: vectors as an index stores them, to judge too: "fp16", "int8", "bits", "rescored" (bits, then int8), "tf32".
        margin: tolerated loss of gain, as a share of images.
        seed: seed of the image sample and the bootstrap.
        cache: folder of stored features and downloaded data.
        device: where torch, k-NN and linear probes compute: "cpu", "cuda", or "auto", the GPU if torch sees one.
        torch_side: rebuilds the torch models; None means `mimexport.References()`. Pass one with `models` or `aggregators`
            if an artifact was built from your own; it has a device of its own.
        progress: receives the progress.

    Returns:
        The report: `verdict`, gains with their intervals, scores of all images. `mimeval.report.encode` returns it as JSON.

    Raises:
        MimError: data cannot be read, an engine given by name does not run, or weights cannot be found.

    """
    side = torch_side or _installed_torch_side(device)
    progress.say(f"torch computes on {side.device_text}")
    opened = [Artifact.open(path) for path in artifacts]
    folder = Path(cache).expanduser()
    dataset = _dataset(data, folder, limit, train_limit, seed, progress)
    named = [Artifact.open(path) for path in ([baseline] if isinstance(baseline, (str, os.PathLike)) else baseline)]
    baselines, lacking = find_baselines(opened, named)
    build_baseline = _baseline_builder(side, folder / "baselines", progress)
    baselines += [build_baseline(artifact, None) for artifact in lacking]
    options = evaluation.EvalOptions(
        metrics=tuple(metrics), deployed=deployed, own=own, stored=tuple(stored), margin=margin, seed=seed
    )
    with accelerated(side.accelerator):
        return evaluation.evaluate(
            opened, baselines, dataset, parse_engines([engines] if isinstance(engines, str) else engines),
            store=FeatureStore(folder / "features", progress.say, progress.progress), options=options,
            fixed={artifact.manifest.embedding_space for artifact in named},
            open_references=side.open, build_baseline=build_baseline,
        )  # fmt: skip


def compare(
    first: _Path,
    second: _Path,
    *,
    data: str | _Path | Dataset,
    engine: str = "auto",
    metrics: Sequence[str] = (),
    limit: int | None = None,
    train_limit: int | None = None,
    seed: int = 0,
    cache: _Path = CACHE,
    device: str = "auto",
    torch_side: TorchSide | None = None,
    progress: Progress = NO_PROGRESS,
) -> comparison.Comparison:
    """Compare two artifacts on the same images, each with its own classifiers.

    If one of them is plain [cls], torch also measures it with the other token norm, on up to 10,000 training images.

    >>> import mimeval
    >>> found = mimeval.compare("artifacts/tiny", "artifacts/tiny", data="folder:labelled", metrics=["knn"])
    >>> found.rows[0].metric, found.rows[0].difference.value
    ('k-NN', 0.0)

    Args:
        first: an artifact, or its folder.
        second: another, of any backbone.
        data: as in `evaluate`.
        engine: the engine for both.
        metrics: as in `evaluate`.
        limit: as in `evaluate`.
        train_limit: as in `evaluate`.
        seed: as in `evaluate`.
        cache: as in `evaluate`.
        device: as in `evaluate`; engines are not concerned.
        torch_side: as in `evaluate`; without an installed one the other token norm is not measured.
        progress: as in `evaluate`.

    Returns:
        One row per metric: both accuracies, their paired difference with its 95 % interval, and McNemar's test. The verdict
        says if a [cls] is weaker than with the other token norm.

    Raises:
        MimError: as `evaluate`.

    """
    folder = Path(cache).expanduser()
    side = torch_side or _torch_side_if_installed(device)
    opened = Artifact.open(first), Artifact.open(second)
    with accelerated(None if side is None else side.accelerator):
        return comparison.compare_artifacts(
            *opened,
            _dataset(data, folder, limit, train_limit, seed, progress),
            engine=engine,
            metrics=tuple(metrics),
            store=FeatureStore(folder / "features", progress.say, progress.progress),
            seed=seed,
            open_references=None if side is None else side.open,
        )


def _baseline_builder(side: TorchSide, folder: Path, progress: Progress) -> BuildBaseline:
    def build_baseline(artifact: Artifact, token_norm: TokenNorm | None) -> Artifact:
        norm = "" if token_norm is None else f"{token_norm} "
        about = artifact.manifest
        progress.say(f"  building the {norm}baseline of {about.name} ({about.graph.precision}) …")
        return side.build_baseline(artifact, folder, token_norm)

    return build_baseline


def _dataset(
    data: str | _Path | Dataset, cache: Path, limit: int | None, train_limit: int | None, seed: int, progress: Progress
) -> Dataset:
    if isinstance(data, Dataset):
        return limited(data, limit, train_limit, seed)
    name = os.fspath(data)

    def reading(here: int, total: int | None) -> None:  # the total may be unknown
        progress.progress(f"reading {name}", here, here if total is None else total)

    return open_dataset(name, cache=cache, limit=limit, train_limit=train_limit, seed=seed, progress=reading)


def _torch_side_if_installed(device: str) -> TorchSide | None:
    try:
        return _installed_torch_side(device)
    except ImportError:
        if device == "cuda":
            raise
        return None


def _installed_torch_side(device: str) -> TorchSide:
    for found in entry_points(group=_TORCH_SIDE):
        side: Callable[..., TorchSide] = found.load()
        return side(device=device)
    raise MissingExtraError("an evaluation against torch", "export")
