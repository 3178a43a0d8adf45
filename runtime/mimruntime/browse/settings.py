"""The settings of `mimexport browse`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowseSettings:
    """The images, artifacts and address of a page.

    Attributes:
        artifacts: folders, or addresses of services.
        images: folders, files and patterns.
        vectors: outputs of `mimexport embed` for these images; each is used for the artifacts of its embedding space.
        cache: folder of vectors and thumbnails.
        host: address to listen on; on another one than 127.0.0.1, ::1 and localhost the page needs a key.
        port: 0 takes a free one.
        engine: as in `Embedder.open`.

    """

    artifacts: tuple[str, ...]
    images: tuple[str, ...]
    vectors: tuple[Path, ...] = ()
    cache: Path
    host: str = "127.0.0.1"
    port: int = 8010
    engine: dict[str, Any] = field(default_factory=dict)
