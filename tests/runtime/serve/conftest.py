"""One server of the toy artifact for all tests that do it no harm, and what its answers are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from service import Service, running

from mimruntime import Embedder


@pytest.fixture(scope="session")
def toy(toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with running(toy_artifact, "--max-body-mb", 8, "--grpc-port", 0, log=log, covered=True) as service:
        yield service


@pytest.fixture(scope="session")
def expected(toy_artifact: Path, photos: list[Path]) -> np.ndarray:
    """What `Embedder.embed` gives for the photographs, float32 (8, 16)."""
    with Embedder.open(toy_artifact) as embedder:
        return embedder.embed(photos)


@pytest.fixture(scope="session")
def weights(toy_artifact: Path, photos: list[Path]) -> np.ndarray:
    """What `Embedder.select` gives for the photographs, float32 (8, 8, 8)."""
    with Embedder.open(toy_artifact) as embedder:
        return embedder.select(photos)


@pytest.fixture(scope="session")
def space(toy_artifact: Path) -> str:
    with Embedder.open(toy_artifact) as embedder:
        return embedder.space
