"""The command behind `make eval-engines` builds every precision and judges each of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import check_docs
import msgspec
import pytest
from click.testing import CliRunner, Result

from mimeval.cli.progress import ConsoleProgress
from mimeval.evaluation import EvalOptions
from mimexport.heads import embedded_heads
from mimexport.keep import FIXED
from mimexport.options import BuildOptions
from mimruntime.artifact import Artifact

TOOL = Path(__file__).parents[2] / "tools" / "eval_engines.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eval_engines", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planned(tool: ModuleType, model: str, *only: str) -> dict[str, BuildOptions]:
    """What is built of a backbone, by name."""
    possible = list(tool._possible(model, Path("built"), Path("photos")))
    return {options.out.name: options for options in tool.planned(model, possible, only)}


@pytest.mark.parametrize("model", ["mae-tiny", "mae-small"])
def test_every_backbone_has_its_baseline_and_an_encoder_that_drops_patches(tool: ModuleType, model: str) -> None:
    plan, built = tool.PLANS[model], planned(tool, model)
    for precision in plan.precisions:
        suffix = "" if precision == "fp32" else f".{precision}"
        assert {f"{name}{suffix}" for name in plan.narrow} <= set(built)
    assert {*plan.only, "cls", "topk"} <= set(built)
    assert (built["topk-keep50"].keep, built["topk-keep50"].keep_by) == plan.keep
    assert not {name for name in built if name.split(".")[0] not in plan.narrow and "." in name}


def test_both_kinds_of_rule_choose_the_patches_that_stay(tool: ModuleType) -> None:
    assert {plan.keep[1] in FIXED for plan in tool.PLANS.values()} == {True, False}


def test_every_head_of_mae_tiny_is_built_and_what_is_asked_for_in_every_precision(tool: ModuleType) -> None:
    built = set(planned(tool, "mae-tiny"))
    assert {head.removesuffix("-whitened") for head in built} >= set(embedded_heads("mae-tiny"))
    assert {"cls-whitened", "ep.int8"} <= built
    asked = set(planned(tool, "mae-small", "abmilp", "mean-whitened"))
    assert asked >= {f"{name}{end}" for name in ("cls", "abmilp") for end in ("", ".fp16", ".bf16", ".int8")}
    assert {name for name in asked if "whitened" in name} == {"cls-whitened", "mean-whitened"}, "fp32 alone"


def test_gains_are_counted_from_the_cls_of_the_plan_whichever_norm_is_ahead_by_chance(
    tool: ModuleType, toy_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate` turns red where a baseline that is fixed is shown to be the weaker: tests/eval/test_baselines.py."""
    found = Artifact.open(toy_artifact)
    aggregator = msgspec.structs.replace(found.manifest.aggregator, name="cls")
    backbone = msgspec.structs.replace(found.manifest.backbone, prefix_tokens=1)
    cls = replace(found, manifest=msgspec.structs.replace(found.manifest, aggregator=aggregator, backbone=backbone))
    asked = {}
    monkeypatch.setattr(tool, "evaluate", lambda *_, **options: asked.update(options))
    tool.judge([cls], None, ["all"], EvalOptions(), tmp_path, ConsoleProgress())
    assert asked["fixed"] == {cls.manifest.embedding_space}


def test_the_table_keeps_the_prose_above_it(tool: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "table.md"
    page.write_text(f"# Prose\n\n{tool.TABLE_MARKER}\nold")
    for text in ("once", "again"):
        tool.write_table(text, page, "mae-tiny")
    assert page.read_text() == f"# Prose\n\n{tool.TABLE_MARKER}\n\nagain"
    tool.write_table("table", tmp_path / "new.md", "mae-small")
    assert check_docs.MEASURED.match((tmp_path / "new.md").read_text())
    assert (tmp_path / "new.md").read_text().endswith(f"{tool.TABLE_MARKER}\n\ntable")
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
    assert "--write-baseline replaces all rows" in done.stderr


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
