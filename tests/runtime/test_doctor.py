"""`doctor` says what runs here, what is missing and how to get it; its exit status tells whether anything runs."""

from __future__ import annotations

import json
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from mimruntime import doctor
from mimruntime.cli.doctor import doctor_command
from mimruntime.engines import ENGINES, engine_module, onnxruntime
from mimruntime.errors import MissingExtraError

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(doctor_command, [*map(str, arguments)])
    return done.exit_code, done.output


def row(output: str, title: str, start: str = "") -> str:
    return next(line for line in output.splitlines() if line.startswith(f"{title:<11} {start}"))


def test_engines_with_their_precisions_and_what_auto_takes(toy_artifact: Path) -> None:
    code, output = run(toy_artifact)
    assert code == 0
    assert row(output, "engine", "onnxruntime").endswith("cpu runs fp32, fp16, int8")
    assert row(output, "engine", "openvino").endswith("cpu runs fp32, fp16, bf16, int8")
    assert "onnxruntime (nothing is compiled for this machine; it is the first engine that runs fp32" in output
    assert "opens on cpu, fp32, with torch's vectors" in row(output, "auto")


def test_a_compiled_engine_and_one_for_other_hardware_are_told_apart(toy_copy: Path, monkeypatch) -> None:
    from mimruntime.artifact import Artifact
    from mimruntime.engines.compilation import compile_engine

    compile_engine(toy_copy, engine="onnxruntime", batch=(1, 2, 2))
    (folder,) = Artifact.open(toy_copy).engines.iterdir()
    _, output = run(toy_copy)
    assert row(output, "compiled").endswith(f"{folder.name}: fits this machine")
    assert f"onnxruntime ({folder.name} is compiled for this machine, " in row(output, "auto")
    monkeypatch.setattr(onnxruntime, "describe_cpu", lambda: "another CPU")
    code, output = run(toy_copy)
    assert "; this machine has another CPU" in row(output, "compiled")
    assert "nothing is compiled for this machine" in row(output, "auto")
    assert code == 0


def test_an_artifact_whose_engine_gives_other_vectors_is_not_ready(toy_artifact: Path, monkeypatch) -> None:
    right = onnxruntime.OnnxRuntimeEngine._run

    def wrong(self: object, pixels: np.ndarray) -> dict[str, np.ndarray]:
        outputs = right(self, pixels)
        return outputs | {"embedding": np.roll(outputs["embedding"], 1, axis=1)}

    monkeypatch.setattr(onnxruntime.OnnxRuntimeEngine, "_run", wrong)
    code, output = run(toy_artifact)
    assert code == 1
    assert "does not open: " in row(output, "auto")
    assert row(output, "verdict").endswith("nothing runs here; the lines above say why")
    assert run()[0] == 0  # an engine runs, the artifact does not


def test_without_a_library_nothing_runs_and_the_line_that_installs_it_is_said(monkeypatch) -> None:
    def missing() -> str:
        raise MissingExtraError("the engine", extra="x")

    for name in ENGINES:
        monkeypatch.setattr(engine_module(name), "library_version", missing)
    code, output = run()
    assert code == 1
    assert row(output, "engine", "onnxruntime: not installed; run: pip install 'mimexport[cpu]'")
    assert row(output, "engine", "openvino: not installed; run: pip install 'mimexport[openvino]'")
    code, output = run("--json")
    found = json.loads(output)
    assert (code, found["can_run"], found["engines"][0]["version"]) == (1, False, None)


def test_a_package_that_is_missing_names_its_extra(monkeypatch) -> None:
    installed = {"fastapi", "uvicorn", "onnxruntime-gpu"}
    lines = [
        "numpy>=1", "fastapi>=0.1; extra == 'serve'", "uvicorn>=0.3 ; extra == 'serve'", "grpcio>=1; extra == 'grpc'",
        "tensorrt-rtx-cu13>=1.7; sys_platform != 'darwin' and extra == 'tensorrt-rtx'", "ruff; extra == 'dev'",
        "onnxruntime>=1; extra == 'cpu'", "onnxruntime-gpu>=1; extra == 'gpu'",
    ]  # fmt: skip

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(doctor.metadata, "requires", lambda _: lines)
    monkeypatch.setattr(doctor.metadata, "version", version)
    assert [*doctor.missing_extras()] == ["tensorrt-rtx", "grpc"]


def test_every_extra_of_the_project_has_a_purpose() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*doctor.PURPOSES} == {*project["optional-dependencies"]} - {"dev", "docs", "scale-dev"}


def test_what_is_no_artifact_is_an_error() -> None:
    assert CliRunner().invoke(doctor_command, ["nowhere"]).exit_code == 1
