"""Compiled engines in an artifact's `engines/`: written whole or not at all, listed, and chosen with every check."""

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
    """Return what is compiled for `engine`, or for any, in order of name; the files beside `engine.json` are not read.

    Raises:
        EngineError: an `engine.json` that is missing, damaged, newer than this program, or was moved.

    """
    pattern = re.compile(rf"{re.escape(engine) if engine else '.+'}-[0-9a-f]{{12}}")
    if not artifact.engines.is_dir():
        return []
    return [_read(artifact, folder) for folder in sorted(artifact.engines.iterdir()) if pattern.fullmatch(folder.name)]


def choose_compiled(artifact: Artifact, module: EngineModule, provider: str | None = None) -> CompiledEngine | None:
    """Return what was compiled last for this machine, for a GPU if any was; None where nothing was. Files are not read yet.

    What was compiled for other hardware is passed over; what was compiled for this hardware from another graph or with
    another version of the library is refused, for it would be used if it were not stale.

    Raises:
        EngineError: nothing fits and something is stale, with the line that mends it; or as `list_compiled`.

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
    """Return what differs between a record and what is here, or None."""
    if record.graph_sha256 != artifact.graph_sha256:
        return f"was compiled from another graph ({record.graph_sha256[:12]}…, here is {artifact.graph_sha256[:12]}…)"
    if record.artifact_sha256 not in {"", seal := artifact.manifest.sha256}:
        return f"was compiled for another artifact ({record.artifact} {record.artifact_sha256[:12]}…, here is {seal[:12]}…)"
    if record.version != (version := module.library_version()):
        return f"was compiled with {record.engine} {record.version}, installed is {version}"
    built = artifact.manifest.graph.precision
    if record.precision == "bf16" and "bf16" not in {built, record.options.get("precision")}:
        return f"was compiled in bf16, which --precision did not ask for; the graph is {built}"
    return None


def describe_use(artifact: Artifact, module: EngineModule, record: EngineRecord) -> str:
    """Return in words whether `record` would be used on this machine."""
    try:
        if reason := stale_reason(artifact, module, record) or module.other_hardware(record):
            return reason
        chosen = choose_compiled(artifact, module)
        taken = chosen is not None and chosen.record.key == record.key
        return "fits this machine" if taken else "fits this machine, where another that was compiled later is taken"
    except (EngineError, MissingExtraError) as error:
        return f"needs more: {error}"


def compile_line(artifact: Artifact, record: EngineRecord) -> str:
    """Return the command that compiles `record` again."""
    given = [part for name, value in record.options.items() for part in (f"--{name}", value) if part]
    return shlex.join(["mimexport", "compile", str(artifact.path), "--engine", record.engine, *given])


def check_files(artifact: Artifact, compiled: CompiledEngine) -> None:
    """Refuse a compiled engine one of whose files is missing, changed or cut short.

    Raises:
        EngineError: with the line that mends it.

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
            raise EngineError(f"{path} was changed or cut short (expected sha256 {seal.sha256[:12]}…); {remedy}")


@contextlib.contextmanager
def staged_engine(artifact: Artifact) -> Iterator[Path]:
    """Yield a hidden folder inside `engines/` for `publish` to rename; it is removed when the block ends.

    Raises:
        OutputError: the artifact cannot be written to.

    """
    try:
        artifact.engines.mkdir(exist_ok=True)
        writing.sweep(artifact.engines, mark=records.FILE)
        with writing.staged_folder(artifact.engines, "engine") as stage:
            yield stage
    except OSError as error:
        raise OutputError(f"cannot write to {artifact.engines}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # nothing compiled, nothing left
            artifact.engines.rmdir()


def publish(artifact: Artifact, stage: Path, record: EngineRecord) -> CompiledEngine:
    """Seal what lies in `stage` and rename it to its key, in place of what was compiled with these options before."""
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
    """Refuse a file of an engine that lies elsewhere, or is no file: what runs is what lies in the artifact."""
    for part in (path, *path.parents):
        if part == artifact.path:
            break
        if part.is_symlink():
            raise EngineError(
                f"{part} is a link, and compiled engines are not followed elsewhere; delete it, or copy it here"
            )
    if path.exists() and not path.is_file():
        raise EngineError(f"{path} is no regular file; delete {path.parent}")


def _superseded(artifact: Artifact, record: EngineRecord) -> Iterator[Path]:
    """Yield the folders of another graph or version that `record` takes the place of; what cannot be read is left."""
    for folder in artifact.engines.glob(f"{record.engine}-*"):
        with contextlib.suppress(EngineError):
            there = _read(artifact, folder).record
            same = (there.provider, there.hardware, there.options) == (record.provider, record.hardware, record.options)
            if same and there.key != record.key:
                yield folder


def _read(artifact: Artifact, folder: Path) -> CompiledEngine:
    path = folder / records.FILE
    # Compiled again with other options it would lie beside this one.
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
        raise EngineError(f"{folder} holds the engine {record.key}; {remedy}")
    return CompiledEngine(folder, record)
