"""The Python blocks of docs/how-to/serve.md, with the stock clients of OpenAI and Triton."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import numpy as np
from service import Service

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "serve.md"


def test_the_clients_of_the_page_get_the_vector_of_the_embedder(
    toy: Service, photos: list[Path], expected: np.ndarray, tmp_path: Path
) -> None:
    shutil.copy(photos[0], tmp_path / "cat.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    with contextlib.chdir(tmp_path):
        for block in blocks:
            names: dict[str, object] = {}
            exec(block.replace("localhost:8000", f"127.0.0.1:{toy.port}").replace("mae-tiny-topk", "toy"), names)
            assert np.dot(np.asarray(names["vector"], np.float32), expected[0]) > 0.999999
