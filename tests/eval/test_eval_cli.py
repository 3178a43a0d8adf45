"""`mimexport eval` and `compare`: verdicts as exit status, and one clear line for what cannot be evaluated."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from catalogue import built
from PIL import Image

import mimruntime.cli
from mimeval.cli import COMMANDS
from mimeval.errors import DataError
from mimeval.verdict import EXIT
from mimexport.references import References
from mimruntime.artifact import Artifact, seal


@pytest.fixture(scope="module")
def artifacts(small_alias) -> dict[str, str]:
    """A small random backbone, as [cls] and as top-k."""
    return {agg: str(built(agg=agg, model=small_alias, random_seed=0).path) for agg in ("cls", "topk")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three colours as classes, 12 images each to learn from and 8 to judge."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for name, colour in (("blue", (30, 30, 200)), ("green", (30, 200, 30)), ("red", (200, 30, 30))):
        for part, count in (("train", 12), ("val", 8)):
            (root / part / name).mkdir(parents=True)
            for row in range(count):
                pixels = np.clip(rng.normal(colour, 40, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{row}.png")
    return root


@pytest.fixture
def run(capfd, tmp_path):
    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            mimruntime.cli.run(COMMANDS, [*map(str, arguments), "--cache", str(tmp_path / "cache")], obj=References)
        shown = capfd.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


def test_random_weights_have_no_gain_to_carry_over_and_that_is_undecided(run, artifacts, folder, tmp_path) -> None:
    code, out, _ = run("eval", artifacts["cls"], artifacts["topk"], "--data", folder, "--engine", "onnxruntime",
                       "--out", tmp_path / "r")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert code == EXIT[report["verdict"]] == 3
    assert "**UNDECIDED**" in out
    assert report["margin"] == 0.005
    assert report["images"] == {"torch": 24, "engines": 24, "training": 36}
    metrics = {row["metric"] for row in report["scores"]}
    assert {"k-NN", "1-NN", "linear probe", "5-shot", "mAP", "recall@1", "recall@5", "recall@10"} == metrics
    assert {row["fitted"] for row in report["scores"]} == {"torch", "own"}
    assert all(row["drift"]["cosine_worst"] > 0.9999 for row in report["drifts"])


def test_the_baseline_is_built_where_none_is_given(run, artifacts, folder, tmp_path) -> None:
    code, out, error = run("eval", artifacts["topk"], "--data", folder, "--engine", "onnxruntime:fp32", "--metric",
                           "knn", "--no-own", "--out", tmp_path / "r")  # fmt: skip
    assert code == EXIT[json.loads((tmp_path / "r.json").read_text())["verdict"]]
    assert "building the" in error
    assert "topk - [cls] (final)" in out


def test_what_does_not_run_is_listed_with_its_reason(run, artifacts, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mimeval.deployments.ENGINES", {"onnxruntime": "mimruntime.engines.onnxruntime"})
    from mimruntime.engines import onnxruntime
    from mimruntime.errors import MissingExtraError

    def missing(*_args, **_options):
        raise MissingExtraError("the engine 'onnxruntime'", "cpu")

    monkeypatch.setattr(onnxruntime, "open_engine", missing)
    code, _, error = run("eval", artifacts["cls"], artifacts["topk"], "--data", folder, "--out", tmp_path / "r")
    assert code == 1
    assert "no engine could run any of the artifacts" in error
    assert "pip install 'mimexport[cpu]'" in error


def test_unreadable_images_are_left_out_and_named(run, artifacts, folder, tmp_path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "val" / "red" / "3.png").write_bytes(b"no image")
    (copy / "train" / "blue" / "0.png").write_bytes(b"")
    code, out, _ = run("eval", artifacts["cls"], artifacts["topk"], "--data", copy, "--metric", "knn",
                       "--engine", "onnxruntime", "--out", tmp_path / "r")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert code == EXIT[report["verdict"]]
    assert "1 of 24 test images could not be read and are left out: val/red/3.png" in out
    assert "1 of 36 training images could not be read" in out
    assert report["images"]["engines"] == 23


def test_names_of_files_and_artifacts_may_hold_anything(run, artifacts, folder, tmp_path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "val" / "red" / "3.png").rename(copy / "val" / "red" / "3\udce9.png")
    (copy / "val" / "red" / "4\udce9.png").write_bytes(b"no image")
    odd = shutil.copytree(artifacts["topk"], tmp_path / "run_$x_{$")
    code, out, error = run("eval", artifacts["cls"], odd, "--data", copy, "--metric", "knn",
                           "--engine", "onnxruntime", "--out", tmp_path / "r")  # fmt: skip
    assert code == EXIT[json.loads((tmp_path / "r.json").read_text())["verdict"]], error
    assert r"val/red/4\xe9.png" in out
    assert (tmp_path / "r.html").exists()


def test_images_that_train_and_test_share_are_said(run, artifacts, folder, tmp_path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.copy(copy / "val" / "red" / "3.png", copy / "train" / "red" / "99.png")
    _, out, error = run("eval", artifacts["cls"], artifacts["topk"], "--data", copy, "--metric", "knn",
                    "--engine", "onnxruntime", "--no-own", "--out", tmp_path / "r")  # fmt: skip
    assert "1 of 24 test images are training images too" in out, error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "onxruntime"], "unknown engine 'onxruntime'; did you mean"),
        (["--engine", "onnxruntime:int4"], "no artifact has this precision; they have fp32"),
        (["--engine", "all", "--engine", "onnxruntime"], "cannot be combined with other engines"),
        (["--engine", "onnxruntime", "--engine", "onnxruntime:fp32"], "onnxruntime already includes it; leave one out"),
        (["--metric", "knm"], "unknown metric 'knm'; did you mean knn"),
    ],
)
def test_wrong_names_are_one_clear_line(run, artifacts, folder, arguments, message) -> None:
    code, _, error = run("eval", artifacts["cls"], artifacts["topk"], "--data", folder, *arguments)
    assert code == 1
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "inf"], "--margin"),
        (["--margin", "nan"], "--margin"),
        (["--seed", "-1"], "--seed"),
        (["--out", "."], "--out .: expected a file name without suffix"),
    ],
)
def test_options_that_mean_nothing_are_wrong_usage(run, artifacts, folder, arguments, message) -> None:
    code, _, error = run("eval", artifacts["cls"], artifacts["topk"], "--data", folder, *arguments)
    assert code == 2
    assert message in error


@pytest.mark.parametrize(("arguments", "margin"), [([], 0.005), (["--margin", "2"], 0.02)])
def test_the_margin_is_given_in_points(run, artifacts, folder, monkeypatch, arguments, margin) -> None:
    def stop(*_arguments, options, **_more):
        raise DataError(f"the margin is {options.margin}")

    monkeypatch.setattr("mimeval.evaluation.evaluate", stop)
    _, _, error = run("eval", artifacts["cls"], artifacts["topk"], "--data", folder, *arguments)
    assert error.endswith(f"the margin is {margin}\n")


def test_a_place_that_takes_no_report_is_found_out_before_the_work(run, artifacts, folder, tmp_path) -> None:
    (tmp_path / "file").touch()
    code, _, error = run("eval", artifacts["topk"], "--data", folder, "--out", tmp_path / "file" / "r")
    assert (code, error) == (1, f"error: cannot write {tmp_path / 'file' / 'r.json'}: File exists\n")


def test_one_image_that_finds_nobody_is_an_error_of_compare_too(run, artifacts, folder) -> None:
    code, _, error = run("compare", artifacts["cls"], artifacts["topk"], "--data", folder, "--metric", "retrieval",
                         "--limit", "2")  # fmt: skip
    assert code == 1
    assert "nothing could be measured" in error


def test_one_image_has_no_neighbours_to_lose(run, artifacts, folder, tmp_path) -> None:
    code, out, _ = run("eval", artifacts["cls"], artifacts["topk"], "--data", folder, "--metric", "knn", "--limit", "1",
                       "--engine", "onnxruntime", "--no-own", "--out", tmp_path / "r")  # fmt: skip
    assert code == 3
    assert "neighbours are not torch's" not in out


def test_a_missing_reference_is_one_clear_line_before_anything_is_computed(run, artifacts, folder, tmp_path) -> None:
    copies = []
    for agg in ("cls", "topk"):
        copy = Path(shutil.copytree(artifacts[agg], tmp_path / agg))
        manifest = Artifact.open(copy).manifest
        lost = msgspec.structs.replace(manifest.backbone, source="file", origin="gone.pth")
        seal(copy, msgspec.structs.replace(manifest, backbone=lost))
        copies.append(copy)
    code, _, error = run("eval", *copies, "--data", folder, "--metric", "knn")
    assert code == 1
    assert "'gone.pth'; give --weights FILE" in error
    assert not list((tmp_path / "cache").glob("features/*"))


def test_images_that_are_all_alone_in_their_class_are_one_clear_line(run, artifacts, folder) -> None:
    code, _, error = run("eval", artifacts["cls"], artifacts["topk"], "--data", folder, "--limit", "3", "--metric",
                         "retrieval", "--engine", "onnxruntime", "--no-own")  # fmt: skip
    assert code == 1
    assert "nothing could be measured" in error


def test_compare_says_which_is_better_and_writes_a_page(run, artifacts, folder, tmp_path) -> None:
    page = tmp_path / "out" / "page.html"
    code, out, _ = run(
        "compare", artifacts["cls"], artifacts["topk"], "--data", folder, "--metric", "knn", "--out", page
    )
    assert code == 0
    verdict = out.splitlines()[0]
    assert re.search(r"finds the right class for [\d.]+ of 100 images", verdict)
    assert verdict in page.read_text()
    assert "24 test images" in out
    assert out.count("[") >= 2
    code, out, _ = run("compare", artifacts["cls"], artifacts["cls"], "--data", folder, "--json")
    rows = {row["metric"]: row for row in json.loads(out)["rows"]}
    assert rows["k-NN"]["difference"]["value"] == 0
    assert rows["k-NN"]["mcnemar"]["p"] == 1
