"""Artifacts and graphs that many tests read, built once for all processes and for later runs of the same code."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch

import mimruntime
from mimexport.aggregators import make_aggregator
from mimexport.aliases import ALIASES
from mimexport.backbone import Backbone
from mimexport.embedding_model import EmbeddingModel
from mimexport.graph import FILE, export_graph
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.provenance import code_digest
from mimruntime.artifact import Artifact

_ROOT = Path(__file__).parents[2] / "build" / "test-artifacts"
_KEPT_SECONDS = 24 * 3600
"""How long artifacts of other code are kept, so that a reverted change can reuse them."""


def built(*, name: str | None = None, **options: Any) -> Artifact:
    """Return the artifact built with `BuildOptions`, read-only; a test that changes an artifact must use `copied`.

    Args:
        name: name of the folder and the artifact; None takes the aggregator's name.
        options: all build options except `out`.
    """
    make = partial(_build, options)
    return Artifact.open(kept(f"{_key(options)}/{name or options['agg']}", make))


def take(options: BuildOptions, *_: object, **others: Any) -> Artifact:
    """Stand in the place of `build`: copy what it would make of `options` out of the catalogue.

    Args:
        options: as `build` has them.
        others: options that an artifact of the catalogue may differ in, where a test does not see it.
    """
    default = BuildOptions(model=options.model, agg=options.agg, out=options.out, force=options.force)
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    fields["agg_options"] = {name: value for name, value in options.agg_options.items() if value is not None}
    given = {name: value for name, value in (fields | others).items() if value != getattr(default, name)}
    return copied(built(model=options.model, agg=options.agg, **given), options.out)


@contextlib.contextmanager
def exported_as(donor: Artifact) -> Iterator[None]:
    """Have every build take the graph of `donor` for its own, and its figures: for tests of what lies beside a graph."""
    ports = donor.manifest.graph.inputs, donor.manifest.graph.outputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mimexport.graph.export_graph", lambda _, stage, size: shutil.copy(donor.graph, stage) and ports)
        patch.setattr("mimruntime.parity.measure", lambda *_, **__: donor.manifest.parity)
        yield


def graph_of(backbone: str) -> Path:
    """Return the graph of `shallow(backbone)` with the mean of raw tokens."""
    return kept(f"graphs/{backbone.replace(' ', '-')}", partial(_export, backbone)) / FILE


def shallow(backbone: str) -> torch.nn.Module:
    """Return a backbone of `SMALL_MODELS` without its third block, whose graph equals that of the second."""
    model = small_models.make_small(backbone)
    if backbone not in {
        "hiera",
        "eva with mixed rope",
    }:  # blocks differ between stages, or positions depend on their number
        model.blocks = model.blocks[:2]
    return model


def kept(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name`; `make` writes it if this code has not written it yet."""
    folder = _code_folder() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{folder.name}.lock")):
        done = folder.with_name(f"{folder.name}.done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


def copied(artifact: Artifact, target: Path) -> Artifact:
    """Return a copy of `artifact` at `target` that a test may damage."""
    return Artifact.open(shutil.copytree(artifact.path, target))


def _build(options: dict[str, Any], folder: Path) -> None:
    build(BuildOptions(**options, out=folder))


def _export(backbone: str, folder: Path) -> None:
    folder.mkdir()
    opened = Backbone(shallow(backbone))
    model = EmbeddingModel(opened, make_aggregator("mean", opened.shape, {}), "raw", *[(0.5, 0.5, 0.5)] * 2).eval()
    export_graph(model, folder, 64 if backbone == "hiera" else 32)


@cache
def _code_folder() -> Path:
    """Return the folder of artifacts built by this code, and delete old folders of other code."""
    digest = hashlib.sha256(code_digest().encode())
    package = Path(mimruntime.__file__).parent
    for path in (*sorted(package.rglob("*.py")), Path(__file__), Path(small_models.__file__)):
        digest.update(path.name.encode() + path.read_bytes())
    folder = _ROOT / digest.hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "used").touch()
    for other in _ROOT.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - (other / "used").stat().st_mtime > _KEPT_SECONDS:
                shutil.rmtree(other, ignore_errors=True)
    return folder


def _key(options: dict[str, Any]) -> str:
    """Return a digest of the options, with aliases resolved and folders replaced by the content of their files."""
    parts = [repr(ALIASES.get(options["model"]))]
    for name, value in sorted(options.items()):
        files = sorted(value.rglob("*")) if isinstance(value, Path) else []
        held = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
        parts.append(f"{name}={held or value!r}")
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
