"""The two sets that need nothing: drawn scenes and crops of shipped photographs."""

import numpy as np
import pytest

from mimeval.datasets import crops, drawn, open_dataset
from mimeval.errors import DataError
from mimeval.neighbours import nearest
from mimeval.retrieval import retrieve
from mimruntime.decode import decode


def pixels(split, rows):
    return np.stack([np.asarray(decode(split.load(row))) for row in rows])


def test_a_drawn_image_is_a_matter_of_the_seed_alone(tmp_path):
    first, again, other = (open_dataset("drawn", cache=tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first.test.load(7) == again.test.load(7) != other.test.load(7)
    assert first.digest == again.digest != other.digest
    assert first.test.load(7) != first.train.load(7)
    assert decode(first.test.load(3)).size == (drawn.EDGE, drawn.EDGE)


def test_drawn_classes_are_in_balance(tmp_path):
    dataset = open_dataset("drawn", cache=tmp_path, limit=100, train_limit=40)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), 5)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), 2)
    whole = open_dataset("drawn", cache=tmp_path)
    assert (len(whole.test), len(whole.train), len(whole.classes)) == (10_000, 4_000, 20)


def test_the_object_is_what_tells_drawn_classes_apart():
    """The same key with another label changes the object's pixels, and no others."""
    key = (0, 1, 5)
    disc, square = drawn.draw(0, key).astype(int), drawn.draw(drawn.CLASSES.index("square, stripes"), key).astype(int)
    differs = np.abs(disc - square).max(axis=2) > 0
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    assert 0.005 < differs.mean() < 0.4
    assert max(np.ptp(rows), np.ptp(columns)) < 0.6 * drawn.EDGE


def test_objects_lie_anywhere():
    centres = []
    for row in range(60):
        plain, other = (drawn.draw(label, (0, 1, row)).astype(int) for label in (0, 3))
        y, x = np.nonzero(np.abs(plain - other).max(axis=2))
        centres.append((y.mean(), x.mean()))
    assert (np.std(centres, axis=0) > 0.12 * drawn.EDGE).all()


def test_crops_of_a_place_find_each_other_better_than_chance(tmp_path):
    """By colour and coarse form alone; not perfectly, or the set would tell no two embedders apart."""
    dataset = open_dataset("crops", cache=tmp_path, limit=300)
    relevance = dataset.relevance[""]
    table = np.stack([np.asarray(decode(dataset.test.load(row)).resize((6, 6)), float).ravel() for row in range(300)])
    found = retrieve(table - table.mean(), table - table.mean(), relevance.matches, relevance.ignored)
    assert dataset.train is None
    assert 0.3 < found.average_precision.mean() < 0.95


def test_crops_stay_inside_their_place_and_differ(tmp_path):
    dataset = open_dataset("crops", cache=tmp_path)
    sizes = {decode(dataset.test.load(row)).size for row in range(crops.VIEWS)}
    assert len({dataset.test.load(row) for row in range(crops.VIEWS)}) == crops.VIEWS
    assert all(width == height and 70 <= width <= 128 for width, height in sizes)
    assert len(dataset.classes) > 100
    assert dataset.test.load(5) == open_dataset("crops", cache=tmp_path).test.load(5)
    assert dataset.test.load(5) != open_dataset("crops", cache=tmp_path, seed=1).test.load(5)


def test_no_two_places_of_a_photograph_share_a_pixel(tmp_path):
    corners = [name.rsplit(" ", 1) for name in open_dataset("crops", cache=tmp_path).classes]
    assert len({tuple(corner) for corner in corners}) == len(corners)
    assert all(int(edge) % 128 == 0 for _, corner in corners for edge in corner.split(","))


def test_a_photograph_that_is_no_longer_shipped_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(crops, "PHOTOS", {"skimage": ("data", ("no_such_photo.png",))})
    with pytest.raises(DataError, match=r"ships no no_such_photo\.png"):
        open_dataset("crops", cache=tmp_path)


def test_the_nearest_crop_by_pixels_is_not_always_of_the_place(tmp_path):
    dataset = open_dataset("crops", cache=tmp_path, limit=300)
    table = np.stack([np.asarray(decode(dataset.test.load(row)).resize((6, 6)), float).ravel() for row in range(300)])
    indices, _ = nearest(table, table, 1, leave_one_out=True)
    assert (dataset.test.labels[indices[:, 0]] != dataset.test.labels).any()
