"""One class serves every engine that distributes work: it travels as settings and opens where it is used."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mimruntime import Embedder
from mimruntime.batch import BatchEmbedder, embed_rows
from mimruntime.errors import ArtifactError, ImageError, OptionError


@pytest.fixture
def batch_embedder(toy_artifact: Path):
    made = BatchEmbedder(toy_artifact, threads=1, workers=1)
    yield made
    made.close()


def test_columns_in_columns_out(batch_embedder: BatchEmbedder, toy_artifact: Path, photos: list[Path]) -> None:
    paths = np.array([str(photos[0]), "gone.jpg", str(photos[1])], dtype=object)
    out = batch_embedder({"image": paths, "label": np.array([1, 2, 3])})
    assert sorted(out) == ["embedding_space", "error", "image", "label", "vector"]
    with Embedder.open(toy_artifact) as embedder:
        assert np.array_equal(out["vector"][[0, 2]], embedder.embed([photos[0], photos[1]]))
        assert set(out["embedding_space"]) == {embedder.space}
    assert out["vector"].dtype == np.float32
    assert np.isnan(out["vector"][1]).all()
    assert list(out["error"]) == ["", "gone.jpg: cannot be read (No such file or directory)", ""]
    assert list(out["label"]) == [1, 2, 3]


def test_a_column_of_paths_stays_whatever_is_missing_in_a_batch(batch_embedder: BatchEmbedder, photo: Path) -> None:
    batches = [np.array([str(photo), missing], dtype=object) for missing in (str(photo), None)]
    outs = [batch_embedder({"image": batch}) for batch in batches]
    assert [sorted(out) for out in outs] == [["embedding_space", "error", "image", "vector"]] * 2
    assert outs[1]["error"][1] != ""


def test_bytes_and_pixels_are_images_too_and_are_left_out_of_the_answer(
    batch_embedder: BatchEmbedder, photos: list[Path]
) -> None:
    files = np.array([photos[0].read_bytes(), b""], dtype=object)
    out = batch_embedder({"image": files, "path": np.array(["a", "b"])})
    assert sorted(out) == ["embedding_space", "error", "path", "vector"]
    assert out["error"][1] == "b: is empty, 0 bytes"
    pixels = batch_embedder({"image": np.zeros((2, 70, 70, 3), np.uint8)})
    assert pixels["vector"].shape == (2, 16)
    assert batch_embedder({"image": np.array([], dtype=object)})["vector"].shape == (0, 16)


def test_it_is_pickled_as_its_settings_and_opened_where_it_is_used(toy_artifact: Path, photo: Path) -> None:
    with pytest.raises(ArtifactError):
        BatchEmbedder("nowhere").embedder  # noqa: B018 - opens
    made = BatchEmbedder(toy_artifact, column="file", batch_size=2)
    before = made({"file": [str(photo)]})
    raw = pickle.dumps(made)
    made.close()
    assert len(raw) < 1000
    copy = pickle.loads(raw)
    assert copy._embedder is None
    assert np.array_equal(copy({"file": [str(photo)]})["vector"], before["vector"])
    assert copy.embedder.describe().batch_sizes == (2, 1)
    copy.close()


def test_a_missing_column_is_named(batch_embedder: BatchEmbedder) -> None:
    with pytest.raises(OptionError, match="no column 'image' in a batch of picture"):
        batch_embedder({"picture": []})


def test_errors_are_not_read_without_end_before_the_first_row(batch_embedder: BatchEmbedder, photo: Path) -> None:
    read = 0

    def images() -> Iterator[tuple[str, ImageError | Path]]:
        nonlocal read
        for read in range(10_000):
            yield str(read), ImageError("was not fetched") if read % 1000 else photo

    rows = embed_rows(batch_embedder.embedder, images())
    for number in range(1500):
        row = next(rows)
        assert (row.path, row.vector is None) == (str(number), number % 1000 > 0)
        assert read - number <= 16 * 4  # batches of the window


def test_rows_stay_in_order_whatever_fails(batch_embedder: BatchEmbedder, photo: Path) -> None:
    good, failed = ("good", photo), ("failed", ImageError("was not fetched"))
    broken = ("broken", b"<html>")
    for images in ([failed], [failed, good, failed, failed], [good, broken, failed, good], [good] * 20 + [failed], []):
        rows = list(embed_rows(batch_embedder.embedder, images))
        assert [row.path for row in rows] == [name for name, _ in images]
        assert [row.vector is not None for row in rows] == [name == "good" for name, _ in images]
        assert {row.error for row in rows if row.path == "failed"} <= {"failed: was not fetched"}
