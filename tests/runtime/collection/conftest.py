"""Images for whole jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory, photos: list[Path]) -> Path:
    """Sixty crops of photographs, no two alike. Do not change it."""
    folder = tmp_path_factory.mktemp("gallery")
    crops = np.random.default_rng(0)
    whole = [Image.open(path).convert("RGB").resize((300, 300)) for path in photos]
    for number in range(60):
        left, top = crops.integers(0, 200, 2)
        whole[number % len(whole)].crop((left, top, left + 100, top + 100)).save(folder / f"{number:03d}.jpg")
    return folder
