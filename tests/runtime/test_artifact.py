"""Whatever is wrong with an artifact folder is seen before anything in it is used."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mimruntime import artifact, manifest
from mimruntime.artifact import Artifact
from mimruntime.errors import ArtifactError, OutputError


def reseal(folder: Path, **changes: object) -> None:
    """Write the manifest with `changes`, its own digest right again, the list of files as given."""
    current = Artifact.open(folder).manifest
    (folder / artifact.MANIFEST).write_bytes(manifest.encode(msgspec.structs.replace(current, **changes)))


def test_an_artifact_opens_and_lists_every_file(toy_artifact: Path) -> None:
    opened = Artifact.open(toy_artifact)
    assert set(opened.manifest.files) == {"README.md", "model.onnx", "reference.npz"}
    assert opened.graph == toy_artifact / "model.onnx"


def test_encode_and_decode_are_inverse(toy_artifact: Path) -> None:
    raw = (toy_artifact / artifact.MANIFEST).read_bytes()
    assert manifest.encode(manifest.decode(raw)) == raw


def test_what_changes_a_vector_changes_the_space(toy_artifact: Path) -> None:
    m = Artifact.open(toy_artifact).manifest
    replace = msgspec.structs.replace

    def space(backbone: manifest.Backbone = m.backbone, aggregator: manifest.Aggregator = m.aggregator) -> str:
        return manifest.embedding_space(backbone, aggregator, m.embedding, m.preprocess)

    assert space() == space(replace(m.backbone, timm_name=f"{m.backbone.timm_name}.of_other_weights", model="alias"))
    others = {
        space(),
        space(replace(m.backbone, weights_sha256="0")),
        space(replace(m.backbone, timm_name="vit_tiny_quickgelu")),
        space(aggregator=replace(m.aggregator, token_norm="final")),
    }
    assert len(others) == 4


@pytest.mark.parametrize("name", ["README.md", "model.onnx", "reference.npz"])
def test_a_flipped_byte_in_any_file_is_refused(toy_copy: Path, name: str) -> None:
    raw = bytearray((toy_copy / name).read_bytes())
    for position in (0, len(raw) // 2, len(raw) - 1):
        damaged = raw.copy()
        damaged[position] ^= 0x20
        (toy_copy / name).write_bytes(damaged)
        with pytest.raises(ArtifactError, match=f"{name} was changed or truncated"):
            Artifact.open(toy_copy)


@given(position=st.integers(0), flip=st.integers(1, 255))
@example(position=0, flip=1)
@example(position=-1, flip=0x20)
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_anywhere_in_the_manifest_is_refused(toy_artifact: Path, position: int, flip: int) -> None:
    raw = bytearray((toy_artifact / artifact.MANIFEST).read_bytes())
    raw[position % len(raw)] ^= flip
    with pytest.raises(ValueError, match=r"readable|schema|damaged|changed|program"):
        manifest.decode(bytes(raw))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_cut_manifest_is_refused(toy_artifact: Path, data: st.DataObject) -> None:
    raw = (toy_artifact / artifact.MANIFEST).read_bytes()
    with pytest.raises(ValueError, match=r"."):
        manifest.decode(raw[: data.draw(st.integers(0, len(raw) - 1))])


@pytest.mark.parametrize("name", ["README.md", "model.onnx", "reference.npz"])
def test_a_cut_or_missing_file_is_refused(toy_copy: Path, name: str) -> None:
    path = toy_copy / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        Artifact.open(toy_copy)
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{name} cannot be read \(No such file"):
        Artifact.open(toy_copy)


def test_a_newer_schema_says_to_upgrade(toy_copy: Path) -> None:
    reseal(toy_copy, schema=manifest.SCHEMA + 1)
    with pytest.raises(ArtifactError, match="has schema 4, this program reads up to 3; upgrade mimexport"):
        Artifact.open(toy_copy)


def test_a_newer_schema_with_unknown_fields_still_says_to_upgrade(toy_copy: Path) -> None:
    document = json.loads((toy_copy / artifact.MANIFEST).read_text())
    document |= {"schema": 7, "novelty": {}}
    del document["graph"]
    (toy_copy / artifact.MANIFEST).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="has schema 7"):
        Artifact.open(toy_copy)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a readable record"),
        ("{}", "not of this program: format is ''"),
        ('{"format": "gguf", "schema": 1}', "format is 'gguf'"),
        ("[1, 2]", "not a readable record"),
        ("null", "not a readable record"),
        ("[" * 100_000, "not a readable record"),
        ('{"x": ' * 100_000, "not a readable record"),
        ('{"format": "mimexport-artifact", "schema": 1}', "is damaged"),
    ],
)
def test_foreign_json_is_refused(toy_copy: Path, text: str, reason: str) -> None:
    (toy_copy / artifact.MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=reason):
        Artifact.open(toy_copy)


@pytest.mark.parametrize("raw", [b"\xff\xfe\x00", b"\x00" * 100, b'{"format": "\xff"}'])
def test_a_manifest_that_is_no_text_is_refused(toy_copy: Path, raw: bytes) -> None:
    (toy_copy / artifact.MANIFEST).write_bytes(raw)
    with pytest.raises(ArtifactError, match="not a readable record"):
        Artifact.open(toy_copy)


def test_no_folder_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no artifact at .*; build one: mimexport build"):
        Artifact.open(tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"is not an artifact: it contains no manifest\.json"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname", "a/../../outside.bin", "a\0b"])
def test_a_file_outside_the_folder_is_refused(toy_copy: Path, name: str) -> None:
    (toy_copy.parent / "outside.bin").write_bytes(b"x")
    files = Artifact.open(toy_copy).manifest.files
    reseal(toy_copy, files={**files, name: artifact.file_sha256(toy_copy.parent / "outside.bin")})
    with pytest.raises(ArtifactError, match="a file outside the artifact; do not trust it"):
        Artifact.open(toy_copy)


def test_a_link_to_outside_is_refused(toy_copy: Path, tmp_path: Path) -> None:
    (toy_copy / "README.md").rename(tmp_path / "README.md")
    (toy_copy / "README.md").symlink_to(tmp_path / "README.md")
    with pytest.raises(ArtifactError, match="a file outside the artifact"):
        Artifact.open(toy_copy)


def test_a_graph_that_is_not_among_the_checked_files_is_refused(toy_copy: Path) -> None:
    graph = Artifact.open(toy_copy).manifest.graph
    reseal(toy_copy, graph=msgspec.structs.replace(graph, file="../model.onnx"))
    with pytest.raises(ArtifactError, match=r"its graph '\.\./model\.onnx' is not among its files"):
        Artifact.open(toy_copy)


@pytest.mark.parametrize("name", ["", ".", "..", "../evil", "/etc", "a\\b", "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused(toy_copy: Path, name: str) -> None:
    """It becomes one: of the model in a repository of Triton's."""
    reseal(toy_copy, name=name)
    with pytest.raises(ArtifactError, match="which no folder can have; do not trust it"):
        Artifact.open(toy_copy)


def test_a_staged_folder_takes_its_place_only_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "built"

    def fail_half_way() -> None:
        with artifact.staged_folder(target) as stage:
            (stage / "half").touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with artifact.staged_folder(target) as stage:
        (stage / artifact.MANIFEST).touch()
    assert [path.name for path in tmp_path.iterdir()] == ["built"]


def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with (
        pytest.raises(OutputError, match="is not an artifact, so it is not overwritten"),
        artifact.staged_folder(tmp_path / "mine"),
    ):
        pytest.fail("the block was entered")
    assert (tmp_path / "mine" / "thesis.tex").exists()
