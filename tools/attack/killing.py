"""Kill builds, compilations and `embed` jobs at random moments, as the tests do but more often."""

from __future__ import annotations

from pathlib import Path

import killed_at_random
import numpy as np
import rival_jobs
from PIL import Image


def kill(folder: Path, kills: int, seed: int, artifact: Path, image: Path) -> dict[str, str]:
    """Kill `kills` processes, half of them builds and compilations, and check the remaining files after each.

    Returns:
        A description of the results by kind of process.

    Raises:
        AssertionError: files were lost or mixed.

    """
    done = killed_at_random.attack(folder / "builds", kills=kills // 2, seed=seed)
    said = {"kills of build, compile": ", ".join(f"{count} {what}" for what, count in done.items())}
    killed_at_random.build(folder / "another")
    gallery = _gallery(folder / "gallery", image)
    for number, differs in enumerate(rival_jobs.DIFFERENCES):
        share = (kills - kills // 2 + number) // len(rival_jobs.DIFFERENCES)
        place, chance = folder / f"embed-{differs}", np.random.default_rng([seed, number])
        place.mkdir()
        ends = rival_jobs.attack(place, (artifact, folder / "another"), gallery, differs, share, chance)
        said[f"kills of embed, differ in {differs}"] = ", ".join(f"{count} exit {code}" for code, count in ends.items())
    return said


def _gallery(folder: Path, image: Path) -> Path:
    """Write sixty images, each a part of `image`."""
    folder.mkdir()
    with Image.open(image) as whole:
        for number in range(60):
            whole.convert("RGB").crop((number, number, number + 80, number + 80)).save(folder / f"{number:02}.png")
    return folder
