"""What `mimexport browse` is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowseSettings:
    """What is browsed, and where.

    Attributes:
        artifacts: folders, or addresses of services.
        images: folders, files and patterns.
        vectors: what `mimexport embed` wrote of these images; each is for the artifacts of its embedding space.
        cache: folder of vectors and thumbnails.
        host: address to listen on; other machines reach it where it is not one of this machine alone.
        port: 0 takes one that is free.
        engine: what `Embedder.open` takes.

    """

    artifacts: tuple[str, ...]
    images: tuple[str, ...]
    vectors: tuple[Path, ...] = ()
    cache: Path
    host: str = "127.0.0.1"
    port: int = 8010
    engine: dict[str, Any] = field(default_factory=dict)
