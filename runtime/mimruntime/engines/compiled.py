"""Write, list, check and choose the compiled engines in an artifact's folder `engines/`."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mimruntime import writing
from mimruntime.artifact import Artifact, file_sha256
from mimruntime.engines import record as records
from mimruntime.engines.base import EngineModule
from mimruntime.engines.record import CompiledEngine, EngineRecord, FileSeal
from mimruntime.errors import EngineError, MissingExtraError, OutputError


def list_compiled(artifact: Artifact, engine: str | None = None) -> list[CompiledEngine]:
    """Return the compiled engines of `engine` (None: of all engines), sorted by name. Only `engine.json` is read.

    Raises:
        EngineError: an `engine.json` is missing, damaged, newer than this program, or in the wrong folder.

    """
    pattern = re.compile(rf"{re.escape(engine) if engine else '.+'}-[0-9a-f]{{12}}")
    if not artifact.engines.is_dir():
        return []
    return [_read(artifact, folder) for folder in sorted(artifact.engines.iterdir()) if pattern.fullmatch(folder.name)]


def choose_compiled(artifact: Artifact, module: EngineModule, provider: str | None = None) -> CompiledEngine | None:
    """Return the engine compiled last for this machine, GPU engines first; None if there is none. Only `engine.json` is read.

    Engines compiled for other hardware are ignored. An engine for this hardware is stale if it was compiled from another
    graph or with another version of the library.

    Raises:
        EngineError: all engines for this machine are stale (the message names the command to run), or as `list_compiled`.

    """
    candidates = [
        one
        for one in list_compiled(artifact, module.NAME)
        if (provider in {None, one.record.provider}) and module.other_hardware(one.record) is None
    ]
    fresh = [one for one in candidates if stale_reason(artifact, module, one.record) is None]
    if fresh:
        return max(fresh, key=lambda one: (one.record.provider != "cpu", one.record.created))
    for one in candidates:
        reason = stale_reason(artifact, module, one.record)
        raise EngineError(f"{one.folder} {reason}; run: {compile_line(artifact, one.record)}")
    return None


def stale_reason(artifact: Artifact, module: EngineModule, record: EngineRecord) -> str | None:
    """Return why the recorded engine is stale, as a clause without its subject, or None."""
    if record.graph_sha256 != artifact.graph_sha256:
        return (
            f"was compiled from another graph ({record.graph_sha256[:12]}…, this one is {artifact.graph_sha256[:12]}…)"
        )
    if record.artifact_sha256 not in {"", seal := artifact.manifest.sha256}:
        return f"was compiled for another artifact ({record.artifact} {record.artifact_sha256[:12]}…, this is {seal[:12]}…)"
    if record.version != (version := module.library_version()):
        return f"was compiled with {record.engine} {record.version}, but {version} is installed"
    built = artifact.manifest.graph.precision
    if record.precision == "bf16" and "bf16" not in {built, record.options.get("precision")}:
        return f"was compiled in bf16 without --precision bf16; the graph is {built}"
    return None


def describe_use(artifact: Artifact, module: EngineModule, record: EngineRecord) -> str:
    """Return one line about whether this machine uses the engine of `record`, and why not."""
    try:
        if reason := stale_reason(artifact, module, record) or module.other_hardware(record):
            return reason
        chosen = choose_compiled(artifact, module)
        taken = chosen is not None and chosen.record.key == record.key
        return "fits this machine" if taken else "fits this machine, but another one compiled later is used"
    except (EngineError, MissingExtraError) as error:
        return f"cannot be used yet: {error}"


def compile_line(artifact: Artifact, record: EngineRecord) -> str:
    """Return the command that compiles the engine of `record` again."""
    given = [part for name, value in record.options.items() for part in (f"--{name}", value) if part]
    return shlex.join(["mimexport", "compile", str(artifact.path), "--engine", record.engine, *given])


def check_files(artifact: Artifact, compiled: CompiledEngine) -> None:
    """Check the files of a compiled engine against their digests.

    Raises:
        EngineError: a file is missing, changed, truncated or a link; the message names the command to run.

    """
    remedy = f"run: {compile_line(artifact, compiled.record)}"
    for name, seal in compiled.record.files.items():
        path = compiled.folder / name
        if "\0" in name or not path.resolve().is_relative_to(compiled.folder.resolve()):
            raise EngineError(f"{compiled.folder / records.FILE} names '{name}', a file outside its folder; {remedy}")
        _refuse_links(path, artifact)
        try:
            whole = path.stat().st_size == seal.size and file_sha256(path) == seal.sha256
        except OSError as error:
            raise EngineError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
        if not whole:
            raise EngineError(f"{path} was changed or truncated (expected sha256 {seal.sha256[:12]}…); {remedy}")


@contextlib.contextmanager
def staged_engine(artifact: Artifact) -> Iterator[Path]:
    """Yield a hidden folder in `engines/` for `publish` to rename; remove it when the block ends.

    Raises:
        OutputError: the artifact is not writable.

    """
    try:
        artifact.engines.mkdir(exist_ok=True)
        writing.sweep(artifact.engines, mark=records.FILE)
        with writing.staged_folder(artifact.engines, "engine") as stage:
            yield stage
    except OSError as error:
        raise OutputError(f"cannot write to {artifact.engines}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # remove `engines/` if it is empty
            artifact.engines.rmdir()


def publish(artifact: Artifact, stage: Path, record: EngineRecord) -> CompiledEngine:
    """Complete the record, write it to `stage`, and rename `stage` to its key; delete engines that it replaces."""
    files = {
        path.relative_to(stage).as_posix(): FileSeal(sha256=file_sha256(path), size=path.stat().st_size)
        for path in sorted(stage.rglob("*"))
        if path.is_file()
    }
    now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds")
    belongs = {"artifact": artifact.manifest.name, "artifact_sha256": artifact.manifest.sha256}
    whole = msgspec.structs.replace(record, schema=records.SCHEMA, files=files, created=now, **belongs)
    (stage / records.FILE).write_bytes(records.encode(whole))
    target = artifact.engines / whole.key
    writing.replace(stage, target, records.FILE)
    for old in _superseded(artifact, whole):
        with contextlib.suppress(OSError):
            writing.discard(old)
    return CompiledEngine(target, records.decode(records.encode(whole)))


def _refuse_links(path: Path, artifact: Artifact) -> None:
    """Raise EngineError if an engine's file is a link, in a linked folder, or not a regular file."""
    for part in (path, *path.parents):
        if part == artifact.path:
            break
        if part.is_symlink():
            raise EngineError(
                f"{part} is a link, but compiled engines must lie in the artifact; delete it, or copy its files here"
            )
    if path.exists() and not path.is_file():
        raise EngineError(f"{path} is not a regular file; delete {path.parent}")


def _superseded(artifact: Artifact, record: EngineRecord) -> Iterator[Path]:
    """Yield the folders of engines that `record` replaces: same options, other graph or version. Skip unreadable ones."""
    for folder in artifact.engines.glob(f"{record.engine}-*"):
        with contextlib.suppress(EngineError):
            there = _read(artifact, folder).record
            same = (there.provider, there.hardware, there.options) == (record.provider, record.hardware, record.options)
            if same and there.key != record.key:
                yield folder


def _read(artifact: Artifact, folder: Path) -> CompiledEngine:
    path = folder / records.FILE
    # Compiling with other options would not replace this folder, so the remedy deletes it first.
    remedy = f"delete {folder}, then run: mimexport compile {artifact.path} --engine {folder.name.rpartition('-')[0]}"
    _refuse_links(path, artifact)
    try:
        raw = path.read_bytes()
        if artifact.public_key is not None:
            artifact.public_key.check(path, raw)
        record = records.decode(raw)
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise EngineError(f"{path} {error}; {remedy}") from error
    if record.key != folder.name:
        raise EngineError(f"{folder} contains the engine {record.key}; {remedy}")
    return CompiledEngine(folder, record)
