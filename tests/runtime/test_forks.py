"""An engine does not survive a fork: the child is told so at once, and opens its own where the library can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import gc, os, signal, sys
import numpy as np
from mimruntime import Embedder
from mimruntime.batch import BatchEmbedder
from mimruntime.errors import EngineError

artifact, photo, engine = sys.argv[1:]
embedder = Embedder.open(artifact, engine=engine, threads=2)
batches = BatchEmbedder(artifact, engine=engine, threads=2)
expected = embedder.embed([photo])
assert (batches({"image": [photo]})["vector"] == expected).all()

def attempt(name, call):
    try:
        print(name, "gives", np.abs(call() - expected).max() < 1e-6, flush=True)
    except EngineError as error:
        print(name, "says", error, flush=True)

if child := os.fork():
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (embedder.embed([photo]) == expected).all()  # the parent goes on
    sys.exit(status)
signal.alarm(60)  # a child that waits for ever would outlive the test
attempt("embed", lambda: embedder.embed([photo]))
attempt("stream", lambda: next(embedder.stream([photo])).vector)
attempt("run", lambda: embedder.run(np.zeros((1, 64, 64, 3), np.uint8)))
attempt("BatchEmbedder", lambda: batches({"image": [photo]})["vector"])
attempt("another", lambda: Embedder.open(artifact, engine=engine, threads=2).embed([photo]))
embedder.close()
del embedder
gc.collect()
os._exit(0)
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_was_opened_before_a_fork_is_refused_in_the_child(toy_artifact: Path, photo: Path, engine: str) -> None:
    command = [sys.executable, "-c", SCRIPT, toy_artifact, photo, engine]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    refused = [name for name, text in said.items() if text.startswith("says ")]
    assert refused == ["embed", "stream", "run", *(["BatchEmbedder", "another"] if engine == "openvino" else [])]
    for name in refused:
        assert said[name] == (
            f"says the engine '{engine}' was opened before this process was forked, and its threads exist only in the"
            " parent; open the Embedder after the fork, in each process, or start processes with spawn (docs/how-to/processes.md)"
        )
    assert {text for name, text in said.items() if name not in refused} <= {"gives True"}
