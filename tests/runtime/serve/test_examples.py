"""The examples run: an index through the service, and no query from another embedding space."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from service import Service

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize(("example", "library"), [("faiss_index", "faiss"), ("qdrant_index", "qdrant_client")])
def test_an_image_is_its_own_nearest_neighbour(
    toy: Service, photos: list[Path], tmp_path: Path, example: str, library: str
) -> None:
    pytest.importorskip(library)
    for photo in photos:
        (tmp_path / photo.name).symlink_to(photo)
    image = tmp_path / "rocket.jpg"
    command = [sys.executable, EXAMPLES / f"{example}.py", tmp_path, image, toy.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0] == f"1.000  {image}"


def test_an_index_of_another_space_is_refused(toy: Service, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"space": "0" * 16, "paths": []}))
    code = (
        "import sys; from pathlib import Path; from faiss_index import query;"
        "query(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, toy.url, photo, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES, check=False)
    assert "HTTP Error 409" in done.stderr
