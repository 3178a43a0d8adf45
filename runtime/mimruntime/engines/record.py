"""The record `engine.json` of one compiled engine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mimruntime import sealed

FORMAT = "mimexport-engine"
SCHEMA = 2
"""Schema 2 added the artifact's name and digest."""
FILE = "engine.json"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of the records in `engine.json`."""


class BatchProfile(_Record, frozen=True, kw_only=True):
    """The batch sizes a plan supports: `least` to `most`, optimised for `best`."""

    least: int
    best: int
    most: int


class Trial(_Record, frozen=True, kw_only=True):
    """One measured setting."""

    batch: int
    threads: int
    streams: int
    """Number of batch parts that run concurrently."""
    images_per_second: float


class FileSeal(_Record, frozen=True, kw_only=True):
    """One file beside `engine.json`."""

    sha256: str
    size: int
    """Bytes."""


class EngineRecord(_Record, frozen=True, kw_only=True):
    """The complete `engine.json`; `sha256` covers all other fields."""

    format: str = FORMAT
    schema: int = SCHEMA
    engine: str
    """Name in `mimruntime.engines.ENGINES`."""
    version: str
    """Version of the engine's library; other versions cannot open it."""
    precision: str
    """Precision of the matrix products."""
    graph_sha256: str
    """`Artifact.graph_sha256` of the graph it was compiled from."""
    provider: str
    """The hardware by the engine's own name; same as `Engine.provider`."""
    hardware: str
    """CPU, GPU or architectures it was compiled for; compared as text with those of a machine."""
    batch: BatchProfile | None = None
    """Supported batch sizes; None means all."""
    tuned: Trial | None = None
    """The fastest setting; None if none was measured."""
    trials: tuple[Trial, ...] = ()
    options: dict[str, str] = {}
    """Options given to `mimexport compile`, by name without dashes; the value of a flag is empty."""
    created: str = ""
    """UTC, ISO 8601."""
    artifact: str = ""
    """Name of the artifact it was compiled for; "" in records of schema 1."""
    artifact_sha256: str = ""
    """Digest of that artifact's manifest; "" in records of schema 1."""
    files: dict[str, FileSeal] = {}
    """All other files of the folder, by path relative to it."""
    sha256: str = ""

    @property
    def key(self) -> str:
        """Name of the folder: the engine, and a digest of all fields that define it; timings are not included."""
        parts = (self.graph_sha256, self.engine, self.version, self.precision, self.provider, self.hardware)
        raw = msgspec.json.encode((*parts, self.batch, self.options), order="deterministic")
        return f"{self.engine}-{hashlib.sha256(raw).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class CompiledEngine:
    """One compiled engine.

    Attributes:
        folder: `ARTIFACT/engines/<key>`.
        record: the verified content of its `engine.json`.

    """

    folder: Path
    record: EngineRecord


def encode(record: EngineRecord) -> bytes:
    """Return the canonical bytes of `record`, with its digest."""
    return sealed.encode(record)


def decode(raw: bytes) -> EngineRecord:
    """Parse and check `engine.json`.

    Raises:
        ValueError: the bytes are invalid; the message continues "engine.json …".

    """
    return sealed.decode(raw, EngineRecord, format_name=FORMAT, schema=SCHEMA)
