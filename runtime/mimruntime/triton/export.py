"""Write a Triton model repository; each model's folder is written atomically, the ensemble last."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mimruntime import writing
from mimruntime.artifact import Artifact
from mimruntime.errors import OptionError, OutputError
from mimruntime.manifest import Manifest
from mimruntime.triton import model as preprocessing
from mimruntime.triton.config import Options, ensemble_config, graph_config, names, preprocess_config
from mimruntime.triton.kserve import manifest_yaml
from mimruntime.triton.pbtxt import text
from mimruntime.triton.served_graph import GraphFile, graph_file

CONFIG = "config.pbtxt"
_VERSION = "1"


def export(
    artifact: Artifact,
    repository: Path,
    options: Options,
    *,
    engine: str = "onnxruntime",
    ensemble: bool = False,
    storage_uri: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write the models of `artifact` into `repository`; return their folders and the path of the KServe manifest.

    Other models in the repository do not change. A crash leaves at most a hidden folder next to the repository; inside the
    repository, Triton would try to load it as a model.

    Args:
        artifact: the opened artifact, with checked digests.
        repository: folder of the repository; created if missing.
        options: options of the models.
        engine: "onnxruntime", or "tensorrt" if a plan was compiled.
        ensemble: add the preprocessing model for encoded files and the ensemble.
        storage_uri: URI of the repository for KServe; None means `pvc://models/` and the repository's name.
        force: replace models of the same name.

    Raises:
        OptionError: the plan does not support the batch or needs a GPU, the backend does not support the precision, or there
            is no GPU or no ensemble to decode for.
        OutputError: a model exists, an existing ensemble would not fit, or the folder is not writable.
        EngineError, UnknownNameError: see `graph_file`.

    """
    manifest, called = artifact.manifest, names(artifact.manifest)
    file = graph_file(artifact, engine)
    _check_runs(file, manifest.graph.precision, options)
    if options.decode == "gpu" and not (ensemble and options.gpus == (0,)):
        raise OptionError("--decode gpu is for the preprocessing step, on one GPU: add --ensemble --gpu 0")
    writers: dict[str, Callable[[Path], None]] = {called["graph"]: partial(_write_graph, artifact, file, options)}
    if ensemble:
        writers[called["preprocess"]] = partial(_write_preprocessing, manifest, options)
        writers[called["ensemble"]] = partial(_write_ensemble, manifest, options)
    yaml = repository / f"{manifest.name}.inferenceservice.yaml"
    if not ensemble:
        _refuse_left_over(repository, called)
    uri = storage_uri or f"pvc://models/{repository.absolute().name}"
    with _staged(repository, [*writers, yaml.name], force=force) as stage:
        for name, write in writers.items():
            write(stage / name)
        (stage / yaml.name).write_text(manifest_yaml(manifest, options, uri))
    return [*(repository / name for name in writers), yaml]


def _check_runs(file: GraphFile, precision: str, options: Options) -> None:
    if file.backend == "tensorrt" and not options.gpus:
        raise OptionError("a TensorRT plan does not run on a CPU; add --gpu 0")
    if options.max_batch < file.least or (file.most is not None and options.max_batch > file.most):
        raise OptionError(
            f"--max-batch {options.max_batch}: the plan was compiled for batches from {file.least} to {file.most}"
        )
    if precision == "bf16" and file.backend == "onnxruntime" and not options.gpus:
        raise OptionError("onnxruntime has no bf16 kernels on a CPU; add --gpu 0, or build with --precision fp32")


def _refuse_left_over(repository: Path, called: dict[str, str]) -> None:
    """Raise OutputError if the repository has an ensemble or preprocessing model of an earlier graph."""
    for name in (called["ensemble"], called["preprocess"]):
        if (repository / name).exists():
            raise OutputError(f"{repository / name} was written for an earlier model; add --ensemble, or remove it")


def _write_graph(artifact: Artifact, file: GraphFile, options: Options, folder: Path) -> None:
    _write_config(folder, text(graph_config(artifact.manifest, file, options)))
    for name, source in file.sources.items():
        shutil.copyfile(source, folder / _VERSION / name)
    shutil.copyfile(artifact.path / "manifest.json", folder / "manifest.json")


def _write_preprocessing(manifest: Manifest, options: Options, folder: Path) -> None:
    _write_config(folder, text(preprocess_config(manifest, options)))
    shutil.copyfile(preprocessing.__file__, folder / _VERSION / "model.py")


def _write_ensemble(manifest: Manifest, options: Options, folder: Path) -> None:
    _write_config(folder, text(ensemble_config(manifest, options)))
    # Triton requires a version folder, and object stores have no empty folders.
    (folder / _VERSION / "ensemble.txt").write_text("its steps are in config.pbtxt\n")


def _write_config(folder: Path, content: str) -> None:
    (folder / _VERSION).mkdir(parents=True)
    (folder / CONFIG).write_text(content)


@contextlib.contextmanager
def _staged(repository: Path, entries: list[str], *, force: bool) -> Iterator[Path]:
    """Yield a hidden folder next to `repository`; move its entries into the repository, in order, if the block succeeds."""
    present = [name for name in entries if (repository / name).exists()]
    if present and not force:
        raise OutputError(f"{repository / present[0]} exists; replace it with --force, or choose another repository")
    try:
        repository.mkdir(parents=True, exist_ok=True)
        beside = _on_its_disk(repository.absolute())
        writing.sweep(beside, "mimexport")
        for name in entries:
            writing.sweep(repository, name, CONFIG)
        with writing.staged_folder(beside, "mimexport") as stage:
            yield stage
            for name in entries:
                if (stage / name).is_file():
                    writing.sync_and_rename(stage / name, repository / name)
                elif force:
                    writing.replace(stage / name, repository / name, CONFIG)
                else:
                    writing.place(stage / name, repository / name)
    except OSError as error:
        raise OutputError(f"cannot write to {repository}: {error.strerror or error}") from error


def _on_its_disk(repository: Path) -> Path:
    """Return the parent folder of `repository`, or `repository` itself if files cannot be renamed from the parent."""
    parent = repository.parent
    same_disk = parent.stat().st_dev == repository.stat().st_dev
    return parent if same_disk and os.access(parent, os.W_OK) else repository
