"""A search whose queries a running service embeds."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from service import START

from mimruntime.errors import EngineError
from mimruntime.search.encoders import graph_of, open_encoder


def test_a_service_gives_the_vectors_of_a_search(toy, photos, expected, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    with open_encoder(toy.url) as encoder:
        results = list(encoder.stream([*photos, broken, photos[0].read_bytes()]))
        assert encoder.describe().dim == 16
        assert graph_of(encoder) == toy.url
        assert not encoder.has_selection
    np.testing.assert_allclose(np.stack([one.vector for one in results[:8]]), expected, atol=1e-5)
    assert results[8].vector is None
    assert "answered 415" in results[8].error
    np.testing.assert_allclose(results[9].vector, expected[0], atol=1e-5)


def test_the_command_takes_the_address_of_a_service(toy, photos, tmp_path):
    command = [sys.executable, "-c", START, "search", toy.url, str(photos[0].parent), "--query", str(photos[0])]
    done = subprocess.run(
        [*command, "--top", "1", "--json", "--cache", str(tmp_path)], capture_output=True, text=True, check=True
    )
    (query,) = json.loads(done.stdout)["queries"]
    assert query["neighbours"] == [{"path": str(photos[0]), "cosine": pytest.approx(1, abs=1e-5)}]


def test_what_is_no_service_is_named():
    with pytest.raises(EngineError, match="cannot be reached"):
        open_encoder("http://127.0.0.1:9")
