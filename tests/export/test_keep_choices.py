"""`bench --keep` says what fewer patches give and cost, on the user's machine and images."""

from __future__ import annotations

import re

import msgspec
import pytest
from catalogue import built
from click.testing import CliRunner
from PIL import Image

from mimexport import keep_choices
from mimexport.cli import _compare_keeps
from mimexport.heads import embedded_heads, load_head
from mimexport.keep_choices import KeepChoice, as_lines, cheapest, share_of_operations
from mimexport.references import References
from mimruntime.artifact import Artifact
from mimruntime.cli.bench import BenchSettings, bench_command
from mimruntime.errors import MissingExtraError, OptionError
from mimruntime.synthetic import draw_scenes


@pytest.fixture(scope="module")
def artifact(small_alias) -> Artifact:
    return built(model=small_alias, agg="topk", random_seed=0)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, scene in enumerate(draw_scenes(60, 32)):
        Image.fromarray(scene).save(folder / f"{number:02}.png")
    (folder / "99.png").write_text("not an image")
    return folder


def bench(artifact, *arguments, compare=_compare_keeps):
    command = [str(part) for part in (artifact.path, "--engine", "onnxruntime", "--pairs", 1, *arguments)]
    return CliRunner().invoke(bench_command(None, compare), command, catch_exceptions=False)


def test_the_table_holds_everything_first_then_what_was_asked_for(artifact, pictures):
    done = bench(artifact, "--keep", "100%", "--keep", "75%@0,25%@1", "--batches", "1,2", "--images", pictures)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert lines[0].startswith("| --keep | operations | onnxruntime, batch 1 | onnxruntime, batch 2 | two views")
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| 100%", "| 75%@0,25%@1"]
    assert re.search(r"1\.00 × fewer .* \| 100\.0 % \|$", lines[1])  # of itself all of the nearest are kept
    assert 1.9 < float(re.search(r"([\d.]+) × fewer", lines[2])[1]) < 2.0  # 13 and 5 tokens of 17, in two blocks
    assert float(lines[2].split(" | ")[-1].split()[0]) < 100
    assert re.search(r"\| [\d,]+/s, [\d.]+ × \([\d.]+\) \|", lines[2])
    assert re.search(r"as often as with everything: --keep (100%|75%@0,25%@1)$", done.stdout.strip())


def test_the_model_is_that_of_a_build_with_the_option(artifact):
    model = References().model_keeping(artifact, "50%", "norm")
    assert str(model.backbone.keep) == "8 before block 0, by norm"
    assert model.aggregator.params == {"k": 6, "score": "center-norm"}  # 12 of 16 before: a share
    about = artifact.manifest
    aggregator = msgspec.structs.replace(about.aggregator, params=model.aggregator.params)
    half = Artifact(artifact.path, msgspec.structs.replace(about, keep=model.backbone.keep, aggregator=aggregator))
    again = References().model_keeping(half, "100%", None)
    assert (again.backbone.keep, again.aggregator.params) == (None, about.aggregator.params)
    assert share_of_operations(again.backbone) == 1


def test_a_whitening_is_left_out_since_it_fits_only_the_patches_of_its_fit():
    plain = built(model="mae-tiny", agg="topk", with_selection=True)
    head = load_head(embedded_heads("mae-tiny")["topk"])
    about = plain.manifest
    aggregator = msgspec.structs.replace(about.aggregator, head_sha256=head.sha256(whitened=True))
    embedding = msgspec.structs.replace(about.embedding, whitening="192 dimensions")
    whitened = Artifact(plain.path, msgspec.structs.replace(about, aggregator=aggregator, embedding=embedding))
    for keep, left in (("100%", None), ("50%", "32 before block 0, by center-checkerboard")):
        model = References().model_keeping(whitened, keep, None)
        assert model.whitening is None
        assert (model.backbone.keep and str(model.backbone.keep)) == left


def choice(keep, operations, recall):
    return KeepChoice(keep, operations, {}, recall, recall)


def test_the_cheapest_that_keeps_enough_is_named():
    choices = [choice("100%", 1, 0.8), choice("75%", 0.75, 0.77), choice("65%", 0.65, 0.76), choice("50%", 0.5, 0.75)]
    assert cheapest(choices).keep == "65%"
    assert [*as_lines(choices)][-1].endswith("--keep 65%")
    assert cheapest([choice("100%", 1, 0.8), choice("50%", 0.5, 0.1)]).keep == "100%"
    assert cheapest([choice("100%", 1, None), choice("50%", 0.5, None)]) is None


def test_what_cannot_be_compared_is_said(artifact, pictures, monkeypatch):
    for arguments, told in (
        (("--keep", "50%", "--json", "x.json"), "--keep prints a table of its own"),
        (("--keep-by", "norm"), "give --keep, for example"),
    ):
        done = bench(artifact, *arguments)
        assert done.exit_code == 2
        assert told in done.output
    with pytest.raises(MissingExtraError):
        bench(artifact, "--keep", "50%", compare=None)
    monkeypatch.setattr(keep_choices, "_LEAST_IMAGES", 61)
    with pytest.raises(OptionError, match="--images: 60 can be read; expected at least 61"):
        bench(artifact, "--keep", "50%", "--images", pictures)
    assert BenchSettings(artifact=pictures, keep=("75%,50%", "75%@0,50%@6")).schedules() == [
        "75%", "50%", "75%@0,50%@6",
    ]  # fmt: skip
