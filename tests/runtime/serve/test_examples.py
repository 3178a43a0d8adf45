"""The examples run: an index through the service, and no query from another embedding space."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from collection_helpers import mimexport
from service import Service

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"


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


def test_an_index_is_built_of_a_file_that_is_stored_in_fewer_bits(
    toy: Service, toy_artifact: Path, photos: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    file = tmp_path / "vectors.npz"
    assert mimexport("embed", toy_artifact, *photos, "--out", file, "--store", "fp16") == 0
    rocket = next(photo for photo in photos if photo.name == "rocket.jpg")
    command = [sys.executable, EXAMPLES / "faiss_index.py", file, rocket, toy.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"1.000  {rocket}"


def test_an_index_of_another_space_is_refused(toy: Service, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"space": "0" * 16, "paths": []}))
    code = (
        "import sys; from pathlib import Path; from faiss_index import query;"
        "query(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, toy.url, photo, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES, check=False)
    assert "HTTP Error 409" in done.stderr


def test_the_clients_of_the_how_to_page_get_the_vector(
    toy: Service, photo: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    shutil.copy(photo, tmp_path / "cat.jpg")
    with contextlib.chdir(tmp_path):
        for block in blocks:
            names: dict[str, Any] = {}
            here = block.replace("localhost:8000", f"127.0.0.1:{toy.port}").replace("mae-tiny-topk", toy_name(toy))
            exec(compile(here, "serve.md", "exec"), names)
            assert np.isclose(expected @ np.asarray(names["vector"], np.float32), 1, atol=1e-5).any()


def toy_name(toy: Service) -> str:
    name: str = toy.call("/v1/models").json["data"][0]["id"]
    return name
