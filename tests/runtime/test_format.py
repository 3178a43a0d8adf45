"""Records can grow: a field of a later version is passed over, wherever it stands, and the seal covers it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import pytest

from mimeval import regression
from mimruntime import manifest, records, sealed
from mimruntime.artifact import MANIFEST, Artifact
from mimruntime.collection import record as job_record
from mimruntime.engines import record as engine_record
from mimruntime.errors import OutputError

GOLDEN = Path(__file__).parent.parent / "golden" / "schema-2"


class Later(manifest.Manifest, frozen=True, kw_only=True):
    """The manifest of a later version: an optional field with an ordinary default."""

    tags: tuple[str, ...] = ()


def from_the_future(raw: bytes, **added: object) -> bytes:
    """Return a record as a later version would write it: with more fields, at the top and within, and its own seal."""
    document = json.loads(raw)
    seal = document.pop("sha256", None)
    for name, value in document.items():
        if isinstance(value, dict) and name not in {"files", "options", "versions"}:
            value["novelty"] = {"of": [1, "later", None]}
    document |= added
    if seal is None:
        return json.dumps(document, indent=2).encode() + b"\n"
    blank = json.dumps({**document, "sha256": ""}, indent=2).encode() + b"\n"
    return blank.replace(b'"sha256": ""', b'"sha256": "%s"' % hashlib.sha256(blank).hexdigest().encode())


def test_an_old_file_opens_with_a_reader_that_has_one_more_field() -> None:
    for schema in ("schema-1", "schema-2"):
        raw = (GOLDEN.parent / schema / "artifact" / MANIFEST).read_bytes()
        read = sealed.decode(raw, Later, format_name=manifest.FORMAT, schema=manifest.SCHEMA)
        assert (read.tags, read.name) == ((), "toy")


def test_a_later_file_opens_with_a_reader_that_lacks_its_field(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "artifact", tmp_path / "toy", ignore=shutil.ignore_patterns("engines")))
    raw = from_the_future((folder / MANIFEST).read_bytes(), schema=manifest.SCHEMA, tags=["x"])
    (folder / MANIFEST).write_bytes(raw)
    assert Artifact.open(folder).manifest.backbone.model == "toy"
    later = sealed.decode(raw, Later, format_name=manifest.FORMAT, schema=manifest.SCHEMA)
    assert later.tags == ("x",)
    for written in (b'"x"', b"later"):  # fields it does not know are sealed like the others
        with pytest.raises(ValueError, match="was changed"):
            manifest.decode(raw.replace(written, written.upper()))


def test_what_a_later_version_writes_of_every_other_record_opens(tmp_path: Path) -> None:
    raw = from_the_future((GOLDEN / "engine-tensorrt.json").read_bytes(), power="W", schema=engine_record.SCHEMA)
    assert engine_record.decode(raw).batch == engine_record.BatchProfile(least=1, best=8, most=32)
    (tmp_path / "_job").mkdir()
    job = (GOLDEN / "shards" / job_record.RECORD).read_bytes()
    (tmp_path / job_record.RECORD).write_bytes(from_the_future(job, schema=job_record.SCHEMA, stored="fp16"))
    read = job_record.read_record(str(tmp_path))
    assert read
    assert read.images == 3
    baseline = tmp_path / "baseline.json"
    entries = json.loads((GOLDEN / "baseline.json").read_bytes())
    document = {"format": "mimexport-baseline", "schema": 1, "cpu": "any", "entries": [{**entries[0], "margin": 1}]}
    baseline.write_text(json.dumps(document))
    assert regression.read_baseline(baseline) == regression.read_baseline(GOLDEN / "baseline.json")


@pytest.mark.parametrize("schema", [3, 99])
def test_a_newer_schema_says_to_upgrade_in_every_record(schema: int, tmp_path: Path) -> None:
    text = rf"has schema {schema}, this program reads up to \d; upgrade mimexport"
    with pytest.raises(ValueError, match=text):
        engine_record.decode(from_the_future((GOLDEN / "engine-tensorrt.json").read_bytes(), schema=schema))
    (tmp_path / "_job").mkdir()
    job = (GOLDEN / "shards" / job_record.RECORD).read_bytes()
    (tmp_path / job_record.RECORD).write_bytes(from_the_future(job, schema=schema))
    with pytest.raises(OutputError, match=text):
        job_record.read_record(str(tmp_path))
    (tmp_path / "b.json").write_text(f'{{"format": "mimexport-baseline", "schema": {schema}, "what": 1}}')
    with pytest.raises(Exception, match=text):
        regression.read_baseline(tmp_path / "b.json")


def test_the_seal_must_be_the_last_field() -> None:
    class Wrong(msgspec.Struct):
        sha256: str = ""
        format: str = "x"

    with pytest.raises(TypeError, match="the last field of Wrong must be sha256"):
        sealed.encode(Wrong())


def test_a_seal_inside_a_text_is_none() -> None:
    seal = '"sha256": "' + "0" * 64 + '"\n}\n'
    with pytest.raises(ValueError, match="cut short"):
        sealed.decode(json.dumps({"format": "f", "x": seal}).encode(), manifest.Manifest, format_name="f", schema=1)
    assert records.parse(b'{"a": 1}', dict) == {"a": 1}
