"""What earlier versions wrote still opens: tests/golden/ holds files of every schema, made by the code of their time."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import safetensors
import safetensors.torch

from mimeval import regression
from mimeval.regression import read_baseline
from mimexport.errors import HeadError
from mimexport.heads import load_head
from mimruntime import manifest
from mimruntime.artifact import Artifact
from mimruntime.collection import job
from mimruntime.collection import record as collection
from mimruntime.collection.inputs import Columns
from mimruntime.engines import compiled, record
from mimruntime.verification import verify

GOLDEN = Path(__file__).parent / "golden"
SPACES = {"schema-1": "680bb74dbdf771c3", "schema-2": "99b8975b13aa7d6d", "schema-3": "99b8975b13aa7d6d"}
"""By the schema of the manifest; each folder holds what was written when that was the newest."""
WHOLE = pytest.mark.parametrize(
    "folder", [GOLDEN / name for name in SPACES if name != "schema-1"], ids=lambda path: path.name
)


def test_every_schema_that_is_written_now_has_a_golden_file() -> None:
    newest = GOLDEN / max(SPACES)
    texts = {
        name: (newest / name).read_text() for name in ("manifest-int8.json", "engine-tensorrt.json", "baseline.json")
    }
    texts["record"] = (newest / "shards" / collection.RECORD).read_text()
    now = manifest.SCHEMA, record.SCHEMA, regression._SCHEMA, collection.SCHEMA
    assert [msgspec.json.decode(text)["schema"] for text in texts.values()] == list(now)


@pytest.mark.parametrize("schema", SPACES)
def test_an_artifact_opens_and_gives_its_vectors(schema: str, tmp_path: Path) -> None:
    # Without its engines, which another version of the library would refuse.
    copy = shutil.copytree(GOLDEN / schema / "artifact", tmp_path / "toy", ignore=shutil.ignore_patterns("engines"))
    opened = Artifact.open(copy)
    assert f"schema-{opened.manifest.schema}" == schema
    assert opened.manifest.embedding_space == SPACES[schema]
    assert not opened.manifest.backbone.reads_cls
    assert verify(opened.path, engine="onnxruntime", threads=1).parity.images == 4


@WHOLE
def test_a_manifest_with_the_fields_that_schema_2_added_opens(folder: Path) -> None:
    read = manifest.decode((folder / "manifest-int8.json").read_bytes())
    assert read.graph.precision == "int8"
    assert read.conversion
    assert read.conversion.calibration_images == 32
    assert not read.backbone.reads_cls
    assert read.backbone.prefix_tokens == 4


@WHOLE
def test_records_of_compiled_engines_open(folder: Path) -> None:
    opened = Artifact.open(folder / "artifact")
    (tuned,) = compiled.list_compiled(opened)
    seal = "" if folder.name == "schema-2" else opened.manifest.sha256
    assert tuned.record.artifact_sha256 == seal
    assert tuned.record.tuned
    assert (tuned.record.tuned.batch, tuned.record.tuned.threads) == (16, 1)
    plan = record.decode((folder / "engine-tensorrt.json").read_bytes())
    assert plan.batch == record.BatchProfile(least=1, best=8, most=32)
    assert plan.key == "tensorrt-d050420f6960"


@WHOLE
def test_a_head_opens(folder: Path) -> None:
    head = load_head(folder / "head.safetensors")
    assert (head.agg, head.token_norm, head.grid, head.figures) == ("abmilp", "raw", (4, 4), {"k-NN": 0.5})
    assert head.tensors["scorer.0.weight"].shape == (1, 4)
    assert head.whitening
    assert head.whitening[1].shape == (4, 4)


def test_a_head_of_kept_patches_opens() -> None:
    head = load_head(GOLDEN / "schema-3" / "head-keep.safetensors")
    assert head.keep == manifest.Keep(stages=(manifest.KeepStage(block=0, patches=8),), by="checkerboard")
    assert load_head(GOLDEN / "schema-3" / "head.safetensors").keep is None


@WHOLE
def test_a_job_is_taken_up_and_its_shards_are_read(folder: Path) -> None:
    out = folder / "shards"
    read = collection.read_record(str(out))
    assert read
    assert (read.images, read.shards, read.embedding_space) == (3, 2, SPACES[folder.name])
    begun = job.Job(out=str(out), columns=Columns(None, None), record=read)
    assert begun.pending() == []
    work = job.WorkList(begun)
    assert [[entry.source for entry in work.entries(shard)] for shard in range(2)] == [
        ["images/0.png", "images/1.png"],
        ["images/2.png"],
    ]
    assert (out / read.shard_name(0)).is_file()


@WHOLE
def test_a_baseline_opens(folder: Path) -> None:
    (entry,) = read_baseline(folder / "baseline.json")
    assert [(score.model, score.images) for score in entry.scores] == [("cls", 16), ("cls", 16)]
    assert entry.drifts[0].drift.cosine_worst == 0.9


@pytest.mark.parametrize("schema", [1, 2, 9])
def test_a_head_of_a_later_version_opens_or_says_to_upgrade(schema: int, tmp_path: Path) -> None:
    golden = GOLDEN / "schema-2" / "head.safetensors"
    with safetensors.safe_open(golden, "pt") as file:
        header = msgspec.json.decode(file.metadata()["mimexport-head"]) | {"schema": schema, "novelty": [1]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    later = tmp_path / "head.safetensors"
    later.write_bytes(safetensors.torch.save(tensors, {"mimexport-head": msgspec.json.encode(header).decode()}))
    if schema <= 2:
        assert load_head(later).figures == {"k-NN": 0.5}
    else:
        with pytest.raises(HeadError, match="has schema 9, this program reads up to 2; upgrade mimexport"):
            load_head(later)
