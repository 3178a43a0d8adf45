"""What `engine.json` says: the description of one compiled engine beside its files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mimruntime import sealed

FORMAT = "mimexport-engine"
SCHEMA = 2
"""2 added the artifact and its seal."""
FILE = "engine.json"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts."""


class BatchProfile(_Record, frozen=True, kw_only=True):
    """The batches a plan runs: any from `least` to `most`, fastest at `best`."""

    least: int
    best: int
    most: int


class Trial(_Record, frozen=True, kw_only=True):
    """One setting that was measured."""

    batch: int
    threads: int
    streams: int
    """Parts of a batch that run side by side."""
    images_per_second: float


class FileSeal(_Record, frozen=True, kw_only=True):
    """One file beside `engine.json`."""

    sha256: str
    size: int
    """Bytes."""


class EngineRecord(_Record, frozen=True, kw_only=True):
    """`engine.json`, whole. `sha256` covers every other field."""

    format: str = FORMAT
    schema: int = SCHEMA
    engine: str
    """A name of `mimruntime.engines.ENGINES`."""
    version: str
    """Of the engine's library; another one does not open it."""
    precision: str
    """In which matrix products are computed."""
    graph_sha256: str
    """`Artifact.graph_sha256` of the graph it was compiled from."""
    provider: str
    """The hardware by the engine's own name, as `Engine.provider` says it."""
    hardware: str
    """What it was compiled for, in words that are equal on machines it fits: CPU, GPU or architectures."""
    batch: BatchProfile | None = None
    """None: every batch runs."""
    tuned: Trial | None = None
    """The setting that won; None where nothing could be measured."""
    trials: tuple[Trial, ...] = ()
    options: dict[str, str] = {}
    """Options of `mimexport compile` as they were given, without the dashes; a flag's value is empty."""
    created: str = ""
    """UTC, ISO 8601."""
    artifact: str = ""
    """Name of the artifact it was compiled for; "" in records of schema 1, which do not say."""
    artifact_sha256: str = ""
    """Seal of that artifact's manifest; "" likewise."""
    files: dict[str, FileSeal] = {}
    """Every other file of the folder, by name relative to it."""
    sha256: str = ""

    @property
    def key(self) -> str:
        """Name of the folder: the engine, and a digest of everything that decides what it is, but not how fast."""
        parts = (self.graph_sha256, self.engine, self.version, self.precision, self.provider, self.hardware)
        raw = msgspec.json.encode((*parts, self.batch, self.options), order="deterministic")
        return f"{self.engine}-{hashlib.sha256(raw).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class CompiledEngine:
    """One compiled engine.

    Attributes:
        folder: `ARTIFACT/engines/<key>`.
        record: the checked content of its `engine.json`.

    """

    folder: Path
    record: EngineRecord


def encode(record: EngineRecord) -> bytes:
    """Return the canonical bytes of `record`, sealed."""
    return sealed.encode(record)


def decode(raw: bytes) -> EngineRecord:
    """Parse and check `engine.json`.

    Raises:
        ValueError: with a text that completes "engine.json …".

    """
    return sealed.decode(raw, EngineRecord, format_name=FORMAT, schema=SCHEMA)
