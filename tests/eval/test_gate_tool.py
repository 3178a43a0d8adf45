"""The command behind `make eval-engines` builds every precision and judges each of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

TOOL = Path(__file__).parents[2] / "tools" / "eval_engines.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eval_engines", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_build_refuses_is_not_asked_for(tool: ModuleType, tmp_path: Path) -> None:
    names = [options.out.name for options in tool._wanted("mae-tiny", tmp_path, tmp_path)]
    assert {"cls-whitened", "cls.fp16", "cls.int8", "ep.int8"} <= set(names)
    assert not [name for name in names if "whitened" in name and name.endswith((".fp16", ".bf16", ".int8"))]


def test_what_is_judged_of_a_backbone_is_built(tool: ModuleType, tmp_path: Path) -> None:
    assert [*tool.PLANS] == ["mae-tiny", "mae-small"]
    for model, plan in tool.PLANS.items():
        names = {options.out.name for options in tool._wanted(model, tmp_path, tmp_path)}
        assert {*plan.only, "cls"} <= names


def test_the_table_keeps_the_prose_above_it(tool: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "table.md"
    page.write_text(f"# Prose\n\n{tool.TABLE_MARKER}\nold")
    for text in ("once", "again"):
        tool.write_table(text, page)
    assert page.read_text() == f"# Prose\n\n{tool.TABLE_MARKER}\n\nagain"
    assert tool.TABLE_MARKER in (TOOL.parents[1] / "docs" / "results" / "evaluation.md").read_text()


def options(tmp_path: Path, *more: str) -> list[str]:
    folders = ["--cache", str(tmp_path / "cache"), "--artifacts", str(tmp_path / "built"), "--out", str(tmp_path / "r")]
    amount = ["--model", "mae-tiny", "--data", "crops", "--images", "60", "--deployed", "0", "--metric", "retrieval"]
    return [*amount, *folders, *more]


@pytest.fixture
def gate(tool: ModuleType, tmp_path: Path) -> Callable[..., Result]:
    """The command, run here."""
    return lambda *more: CliRunner().invoke(tool.main, options(tmp_path, *more))


@pytest.mark.slow
def test_every_precision_is_built_and_judged(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="pip install 'mimexport[openvino]'")
    command = [sys.executable, str(TOOL), *options(tmp_path, "--only", "topk")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 3}, done.stdout + done.stderr  # few images: undecided
    report = json.loads((tmp_path / "r-mae-tiny.json").read_text())
    ran = {drift["deployment"].split(" in ")[0] for drift in report["drifts"] if drift["model"] == "topk"}
    precisions = {f"onnxruntime {precision}" for precision in ("fp32", "fp16", "int8")}
    assert ran == precisions | {f"openvino {precision}" for precision in ("fp32", "fp16", "bf16", "int8")}
    assert not [drift for drift in report["drifts"] if drift["problem"]]


@pytest.mark.parametrize("part", [("--only", "topk"), ("--engine", "onnxruntime")])
def test_a_part_takes_no_baselines_place(gate: Callable[..., Result], part: tuple[str, str]) -> None:
    done = gate("--write-baseline", *part)
    assert done.exit_code == 2
    assert "--write-baseline takes the place of all rows" in done.stderr


def test_a_place_that_takes_nothing_is_one_clear_line(gate: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = gate("--artifacts", str(tmp_path / "file" / "built"))
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


def test_a_name_that_the_gate_does_not_build_is_refused_with_the_nearest(gate: Callable[..., Result]) -> None:
    done = gate("--only", "topkk")
    assert done.exit_code == 1
    assert "unknown artifact of the gate 'topkk'; did you mean topk" in done.stderr
