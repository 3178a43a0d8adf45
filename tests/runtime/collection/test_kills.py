"""Jobs of two lists and two artifacts are begun at once in one folder and killed at random: nothing lost, nothing mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rival_jobs

KILLS = 11
"""For each difference; `make attack KILLS=200` does more."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("differs", rival_jobs.DIFFERENCES)
def test_jobs_killed_at_random_in_one_folder_lose_nothing_and_mix_nothing(
    toy_artifact: Path, toy_without_selection: Path, gallery: Path, tmp_path: Path, differs: str
) -> None:
    artifacts = toy_artifact, toy_without_selection
    ends = rival_jobs.attack(tmp_path, artifacts, gallery, differs, KILLS, np.random.default_rng(0))
    assert ends[-9] >= KILLS
