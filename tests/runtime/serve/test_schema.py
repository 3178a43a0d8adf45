"""The OpenAPI schema says what the service does: every check of schemathesis, no 5xx."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from service import Service

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.mark.parametrize("examples", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_every_operation_does_what_its_schema_says(toy: Service, space: str, tmp_path: Path, examples: int) -> None:
    command = [
        Path(sys.executable).with_name("schemathesis"), "run", f"{toy.url}/openapi.json", "--checks", "all",
        "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", "1", "--no-shrink",
        "--continue-on-failure",
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(SUPPORT), "SCHEMATHESIS_HOOKS": "schema_hooks", "TOY_SPACE": space}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 selected / 16 total" in done.stdout
