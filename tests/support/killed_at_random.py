"""Run builds and compilations of one folder concurrently and kill them at random: `python killed_at_random.py FOLDER KILLS SEED`.

The builds write a toy artifact with a new graph each time, as `mimexport build --force` does. The compilations are real.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "golden" / "schema-2" / "artifact"


def build(target: Path) -> None:
    """Write a new artifact at `target`: the golden one with another text in its graph."""
    import msgspec

    from mimruntime.artifact import Artifact, seal, staged_folder

    with staged_folder(target, replace=True) as stage:
        for path in GOLDEN.iterdir():
            if path.is_file():
                shutil.copyfile(path, stage / path.name)
        text = secrets.token_bytes(16).hex().encode()
        with (stage / "model.onnx").open("ab") as graph:
            graph.write(b"\x32" + bytes([len(text)]) + text)  # ONNX's doc_string; the last one counts
        (stage / "ballast.bin").write_bytes(os.urandom(1 << 20))  # makes the build long enough to be killed during it
        manifest = Artifact.open(GOLDEN).manifest
        seal(stage, msgspec.structs.replace(manifest, created=text.decode(), files={}))


def compile_toy(target: Path) -> None:
    """Compile the artifact at `target`; on an error, print one line as the command does."""
    from mimruntime.engines.compilation import compile_artifact
    from mimruntime.engines.options import CompileOptions

    compile_artifact(target, CompileOptions(engine="onnxruntime", threads=1))


def check(target: Path) -> str:
    """Check that the artifact and all its engines are complete; return the engine that would be used."""
    from mimruntime.artifact import Artifact
    from mimruntime.engines import onnxruntime
    from mimruntime.engines.compiled import check_files, choose_compiled, list_compiled

    artifact = Artifact.open(target)
    for one in list_compiled(artifact):
        check_files(artifact, one)
        assert one.record.artifact_sha256 == artifact.manifest.sha256, f"{one.folder} belongs to another artifact"
    chosen = choose_compiled(artifact, onnxruntime)
    return chosen.folder.name if chosen else "none"


def attack(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` builds and compilations, some concurrent, and check after each; return counts of the results."""
    draw = random.Random(seed)
    target, counts = folder / "toy", {"killed": 0, "ended well": 0, "said why not": 0, "rounds": 0}
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "thesis.tex").write_text("mine")
    started = time.monotonic()
    assert _start("build", target).wait() == 0
    usual = time.monotonic() - started  # so that kills hit the work even on a busy machine
    while counts["killed"] < kills:
        counts["rounds"] += 1
        running = [_start(draw.choice(["build", "compile"]), target) for _ in range(draw.randint(1, 4))]
        for process in draw.sample(running, len(running)):
            time.sleep(draw.uniform(0, usual))
            process.kill()
        for process in running:
            said = process.communicate()[1].decode()
            kind = {-signal.SIGKILL: "killed", 0: "ended well"}.get(process.returncode, "said why not")
            assert kind != "said why not" or "Error: " in said, said
            assert "Traceback" not in said, said
            counts[kind] += 1
        check(target)
    build(target)  # remains of killed builds must not disturb the next one, and must be removed by it
    compile_toy(target)
    assert check(target) != "none"
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "toy"], sorted(folder.iterdir())
    assert not [path for path in (target / "engines").iterdir() if path.name.startswith(".")]
    assert (folder / "mine" / "thesis.tex").read_text() == "mine"
    return counts


def _start(what: str, target: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, what, target], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _one(action: Callable[[Path], None], target: Path) -> None:
    from mimruntime.errors import MimError

    try:
        action(target)
    except MimError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    if sys.argv[1] in {"build", "compile"}:
        _one({"build": build, "compile": compile_toy}[sys.argv[1]], Path(sys.argv[2]))
    else:
        given = sys.argv[1:]
        sys.stdout.write(f"{attack(Path(given[0]), int(given[1]), int(given[2]))}\n")
