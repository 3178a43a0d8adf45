"""The Python API: the functions behind the commands `mimexport eval` and `mimexport compare`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from mimeval import comparison, evaluation
from mimeval.datasets import Dataset, open_dataset
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
"""Where features and fetched data are kept."""
_Path = str | os.PathLike[str]
_TORCH_SIDE = "mimeval.torch_side"
"""The entry point by which the torch side makes itself known: this package must not import it."""


class TorchSide(Protocol):
    """What the torch side gives: the models that vectors are held against, and baselines that were not built yet."""

    def open(self, artifacts: Sequence[Artifact], *, narrow: bool = False) -> Sequence[Engine]:
        """Return the torch model of every artifact; see `mimeval.deployments.OpenReferences`."""

    def build_baseline(self, artifact: Artifact, folder: Path, token_norm: TokenNorm | None = None) -> Artifact:
        """Return the artifact that `artifact`'s gain is counted from; None takes the norm that is known to be better."""

    def build_plain(self, model: str, agg: str, folder: Path) -> Artifact:
        """Return the artifact in fp32 of an aggregator that learns nothing."""


class Progress(Protocol):
    """Who is told how far an evaluation is."""

    def say(self, line: str) -> None:
        """Take a line about a step."""

    def progress(self, name: str, done: int, total: int) -> None:
        """Take how far a step is."""


class NoProgress:
    """A `Progress` that shows nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def progress(self, name: str, done: int, total: int) -> None:
        """Do nothing."""


NO_PROGRESS = NoProgress()


def evaluate(
    artifacts: Sequence[_Path],
    *,
    data: str | _Path | Dataset,
    baseline: _Path | Sequence[_Path] = (),
    engines: str | Sequence[str] = "all",
    metrics: Sequence[str] = (),
    limit: int | None = None,
    train_limit: int | None = None,
    deployed: int | None = None,
    own: bool = True,
    stored: Sequence[str] = (),
    margin: float = MARGIN,
    seed: int = 0,
    cache: _Path = CACHE,
    torch_side: TorchSide | None = None,
    progress: Progress = NO_PROGRESS,
) -> Report:
    """Did the gain over [cls] carry over from torch to the engines?

    >>> import mimeval
    >>> report = mimeval.evaluate(["artifacts/tiny"], data="folder:labelled", engines="onnxruntime", metrics=["knn"])
    >>> report.verdict in {"pass", "fail", "undecided"}, report.metric
    (True, 'k-NN')

    Args:
        artifacts: the artifacts, or their folders.
        data: a folder or zip of CLASS/image, a name such as "tiny-imagenet" (`mimexport eval --help`), or a `Dataset`.
        baseline: what gains are counted from; none: [cls] of the same backbone, among `artifacts` or built, raw or after the
            final norm, whichever is the stronger.
        engines: "all", or names of engines, each with a precision or without: "openvino:bf16", "torch:fp16".
        metrics: "knn", "linear", "few-shot", "retrieval"; none: all that the data allow.
        limit: test images at most, classes in balance.
        train_limit: training images at most.
        deployed: of the test images, what engines see; torch sees all of them.
        own: also fit on every engine's own features of the training images.
        stored: also judge k-NN among vectors that an index stores so: "fp16", "int8", "bits", "rescored" (bits, the
            candidates again by int8), "tf32" (compared as a GPU does).
        margin: loss of gain that is tolerated, as a share of images.
        seed: of the image draw and the bootstrap.
        cache: folder for features and fetched data.
        torch_side: rebuilds the torch models; None: `mimexport.References()`. Give one with `models` or `aggregators` where
            an artifact was built from those of your own.
        progress: who is told how far it is.

    Returns:
        The report: `verdict`, gains with their intervals, scores of every image. `mimeval.report.encode` gives its JSON.

    Raises:
        MimError: data that cannot be read, an engine asked for by name that does not run, or weights out of reach.

    """
    side = torch_side or _installed_torch_side()
    opened = [Artifact.open(path) for path in artifacts]
    given = [baseline] if isinstance(baseline, (str, os.PathLike)) else baseline
    folder = Path(cache).expanduser()
    dataset = _dataset(data, folder, limit, train_limit, seed, progress)
    named = [Artifact.open(path) for path in given]
    baselines, lacking = find_baselines(opened, named)

    def build_baseline(artifact: Artifact, token_norm: TokenNorm | None = None) -> Artifact:
        norm = "" if token_norm is None else f"{token_norm} "
        about = artifact.manifest
        progress.say(f"  the {norm}baseline of {about.name} ({about.graph.precision}) is built …")
        return side.build_baseline(artifact, folder / "baselines", token_norm)

    baselines += [build_baseline(artifact) for artifact in lacking]
    return evaluation.evaluate(
        opened,
        baselines,
        dataset,
        parse_engines([engines] if isinstance(engines, str) else engines),
        open_references=side.open,
        store=FeatureStore(folder / "features", progress.say, progress.progress),
        options=evaluation.EvalOptions(
            metrics=tuple(metrics), deployed=deployed, own=own, stored=tuple(stored), margin=margin, seed=seed
        ),
        fixed={artifact.manifest.embedding_space for artifact in named},
        build_baseline=build_baseline,
    )


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
    progress: Progress = NO_PROGRESS,
) -> comparison.Comparison:
    """Which of two artifacts is better on these images, each with classifiers of its own?

    >>> import mimeval
    >>> found = mimeval.compare("artifacts/tiny", "artifacts/tiny", data="folder:labelled", metrics=["knn"])
    >>> found.rows[0].metric, found.rows[0].difference.value
    ('k-NN', 0.0)

    Args:
        first: an artifact, or its folder.
        second: another, of any backbone.
        data: as in `evaluate`.
        engine: what runs both.
        metrics: as in `evaluate`, and so are the rest.
        limit: see there.
        train_limit: see there.
        seed: see there.
        cache: see there.
        progress: see there.

    Returns:
        A row for each metric: both accuracies, their paired difference with its 95 % interval, McNemar's test.

    Raises:
        MimError: as `evaluate`.

    """
    folder = Path(cache).expanduser()
    return comparison.compare_artifacts(
        Artifact.open(first),
        Artifact.open(second),
        _dataset(data, folder, limit, train_limit, seed, progress),
        engine=engine,
        metrics=tuple(metrics),
        store=FeatureStore(folder / "features", progress.say, progress.progress),
        seed=seed,
    )


def _dataset(
    data: str | _Path | Dataset, cache: Path, limit: int | None, train_limit: int | None, seed: int, progress: Progress
) -> Dataset:
    if isinstance(data, Dataset):
        return data
    name = os.fspath(data)

    def reading(here: int, total: int | None) -> None:  # how much there is may not be known
        progress.progress(f"reading {name}", here, here if total is None else total)

    return open_dataset(name, cache=cache, limit=limit, train_limit=train_limit, seed=seed, progress=reading)


def _installed_torch_side() -> TorchSide:
    for found in entry_points(group=_TORCH_SIDE):
        side: Callable[[], TorchSide] = found.load()
        return side()
    raise MissingExtraError("an evaluation against torch", "export")
