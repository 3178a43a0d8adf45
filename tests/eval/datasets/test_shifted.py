"""Shifted data sets: the subject leaves the centre and stays in the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mimeval.datasets import open_dataset
from mimeval.datasets.dataset import Dataset, Split
from mimeval.datasets.pixels import split_of_pixels
from mimeval.datasets.shifted import KINDS, kind_of, parse_shift, shift

EDGE, RADIUS, IMAGES = 60, 9, 40


def disc(row: int) -> np.ndarray:
    """Draw a red disc in the middle of grey."""
    y, x = np.indices((EDGE, EDGE)) - (EDGE - 1) / 2
    pixels = np.full((EDGE, EDGE, 3), 90, np.uint8)
    pixels[np.hypot(y, x) < RADIUS] = (250, 20, 20)
    return pixels


def pixels_of(split: Split, row: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(split.load(row))).convert("RGB"), np.int16)


@pytest.fixture
def centred() -> Dataset:
    split = split_of_pixels("disc", np.arange(IMAGES) % 2, disc, "d")
    return Dataset("discs", ("a", "b"), split, split)


@pytest.mark.parametrize("kind", KINDS)
def test_the_subject_is_whole_and_out_of_the_centre(centred, kind) -> None:
    moved = shift(centred, (kind,)).test
    corners = set()
    for row in range(IMAGES):
        pixels = pixels_of(moved, row)
        red = pixels[..., 0] - pixels[..., 1] > 100
        assert red.sum() >= 0.9 * (np.pi * RADIUS**2), "most of the disc is there"
        offset = np.argwhere(red).mean(0) / (np.array(red.shape) - 1) - 0.5
        assert (abs(offset) > 0.14).all(), "in both directions"
        corners.add((offset[0] > 0, offset[1] > 0))
    assert len(corners) == 4


def test_what_is_mirrored_in_is_the_image_itself(centred) -> None:
    striped = np.broadcast_to(np.arange(EDGE, dtype=np.uint8)[:, None, None] * 4, (EDGE, EDGE, 3))
    moved = pixels_of(
        shift(Dataset("s", ("a",), split_of_pixels("s", np.zeros(1), lambda _: striped, "s")), ("mirror",)).test, 0
    )
    steps = abs(np.diff(moved[:, 0, 0]))
    assert moved.shape == striped.shape
    assert sorted(set(steps)) == [0, 4], "no seam: one row twice at the mirror's edge"
    assert (steps == 0).sum() == 1


def test_the_same_image_is_always_shown_in_the_same_way(centred) -> None:
    whole, again = shift(centred, tuple(KINDS)), shift(centred, tuple(KINDS))
    rows = np.array([7, 3])
    assert whole.test.load(3) == again.test.load(3) == whole.test.take(rows).load(1)
    assert whole.digest == again.digest
    assert (
        len(
            {
                whole.digest,
                centred.digest,
                shift(centred, tuple(KINDS), seed=1).digest,
                shift(centred, ("crop",)).digest,
            }
        )
        == 4
    )
    assert len({kind_of(name, tuple(KINDS), 0) for name in centred.test.names}) == 3


def test_a_spec_names_all_kinds_or_one(tmp_path) -> None:
    assert parse_shift("shifted:zip:/a/b.zip") == (tuple(KINDS), "zip:/a/b.zip")
    assert parse_shift("shifted-canvas:drawn") == (("canvas",), "drawn")
    assert parse_shift("drawn") == ((), "drawn")
    assert parse_shift("shifted-away:drawn") == ((), "shifted-away:drawn"), "left to the error for an unknown data set"
    plain, moved = (open_dataset(spec, cache=tmp_path, limit=20, train_limit=20) for spec in ("drawn", "shifted:drawn"))
    assert moved.name == "shifted:drawn"
    assert any("out of the centre" in note for note in moved.notes)
    assert moved.test.load(0) != plain.test.load(0)
    assert (moved.test.labels == plain.test.labels).all()
