"""Kill an action before each of its file operations. Run it as a program, because it forks."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
GOLDEN = Path(__file__).parent.parent / "golden" / "schema-2" / "artifact"
SCENES: dict[str, Callable[[Path], None]] = {}


def kill_at_every_step(
    folder: Path, prepare: Callable[[], None], action: Callable[[], None], check: Callable[[], None]
):
    """Repeat prepare, action and check, killing the action one step later each time, until it completes."""
    for step in itertools.count(1):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        prepare()
        if not (child := os.fork()):
            _act(action, step)
        status = os.waitpid(child, 0)[1]
        check()
        action()  # remains of killed actions must not disturb the next one, and must be removed by it
        check()
        left = [path for path in folder.rglob(".*") if path.suffix in {".partial", ".old"}]
        assert not left, f"step {step} left {left}"
        if status == 0:
            sys.stdout.write(f"{step} steps")
            return
        assert os.WIFSIGNALED(status), f"step {step}: exit status {status}"


def _act(action: Callable[[], None], step: int) -> None:
    remaining = step

    def count(event: str, _: object) -> None:
        nonlocal remaining
        if event in STEPS:
            remaining -= 1
            if not remaining:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        action()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def scene(run: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register a scene by name for the command line."""
    SCENES[run.__name__] = run
    return run


def fill(folder: Path, content: str) -> None:
    """Write a minimal artifact of two files."""
    folder.mkdir(exist_ok=True)
    for name in ("manifest.json", "model.onnx"):
        (folder / name).write_text(content)


def content_of(folder: Path) -> str:
    """Return the content written by `fill`; fail if the files differ."""
    contents = {(folder / name).read_text() for name in ("manifest.json", "model.onnx")}
    assert len(contents) == 1, f"{folder} is mixed: {contents}"
    return contents.pop()


@scene
def build(folder: Path) -> None:
    from mimruntime.artifact import staged_folder

    def action() -> None:
        with staged_folder(folder / "built", replace=True) as stage:
            fill(stage, "new")

    def check() -> None:
        assert not (folder / "built").exists() or content_of(folder / "built") == "new"

    kill_at_every_step(folder, lambda: None, action, check)


@scene
def build_again(folder: Path) -> None:
    from mimruntime.artifact import staged_folder

    def action() -> None:
        with staged_folder(folder / "built", replace=True) as stage:
            fill(stage, "new")

    def check() -> None:
        assert content_of(folder / "built") in {"old", "new"}

    kill_at_every_step(folder, lambda: fill(folder / "built", "old"), action, check)


@scene
def build_again_where_nothing_can_be_swapped(folder: Path) -> None:
    from mimruntime import writing

    def check() -> None:
        writing.sweep(folder, "built", "manifest.json")
        assert content_of(folder / "built") in {"old", "new"}

    writing.exchange = lambda *_: False

    def action() -> None:
        from mimruntime.artifact import staged_folder

        with staged_folder(folder / "built", replace=True) as stage:
            fill(stage, "new")

    kill_at_every_step(folder, lambda: fill(folder / "built", "old"), action, check)


@scene
def compile(folder: Path) -> None:  # noqa: A001
    """Replace a compiled engine by one of another version."""
    import msgspec

    from mimruntime.artifact import Artifact
    from mimruntime.engines import compiled, record

    one = next(iter(compiled.list_compiled(Artifact.open(GOLDEN)))).record

    def publish(version: str) -> None:
        artifact = Artifact.open(folder / "toy")
        with compiled.staged_engine(artifact) as stage:
            for part in range(3):
                (stage / f"{part}.bin").write_text(version)
            compiled.publish(artifact, stage, msgspec.structs.replace(one, version=version))

    def prepare() -> None:
        shutil.copytree(GOLDEN, folder / "toy", ignore=shutil.ignore_patterns("engines"))
        publish("1")

    def check() -> None:
        artifact = Artifact.open(folder / "toy")
        there = compiled.list_compiled(artifact)
        assert there
        for engine in there:
            compiled.check_files(artifact, engine)
            assert {(engine.folder / f"{part}.bin").read_text() for part in range(3)} == {engine.record.version}

    assert record.FILE
    kill_at_every_step(folder, prepare, lambda: publish("2"), check)


@scene
def file(folder: Path) -> None:
    from mimruntime import writing

    path = folder / "head.bin"

    def action() -> None:
        writing.sweep(folder, path.name)
        writing.write_file(path, b"new" * 9)

    def check() -> None:
        assert path.read_bytes() in {b"old" * 9, b"new" * 9}

    kill_at_every_step(folder, lambda: path.write_bytes(b"old" * 9) and None, action, check)


if __name__ == "__main__":
    SCENES[sys.argv[1]](Path(sys.argv[2]))
