"""Revisited Oxford and Paris: the protocol gives what its authors' procedure gives, and a pickle runs nothing."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from mimeval.datasets import open_dataset
from mimeval.errors import DataError
from mimeval.retrieval import retrieve
from mimruntime.decode import decode

GALLERY = 40
QUERIES = ("all_souls_000013", "all_souls_000026", "radcliffe_camera_000519", "worcester_000194")


def truth(rng):
    entries = []
    for _ in QUERIES:
        easy, hard, junk = np.split(rng.permutation(GALLERY)[:18], [6, 12])
        entries.append({"bbx": [2.0, 3.0, 18.5, 13.0], "easy": easy.tolist(), "hard": hard.tolist(), "junk": junk})
    entries[1]["easy"] = []  # a query that the protocol 'easy' must leave out
    return {"imlist": [f"photo_{i:06d}" for i in range(GALLERY)], "qimlist": list(QUERIES), "gnd": entries}


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    written = truth(rng)
    (tmp_path / "jpg").mkdir()
    for name in (*written["imlist"], *written["qimlist"]):
        pixels = rng.integers(0, 256, (16, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "jpg" / f"{name}.jpg")
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(written))
    return tmp_path, written


def opened(folder):
    return open_dataset(f"roxford5k:{folder}", cache=folder / "cache")


def published_map(ranks, entries):
    """The procedure of the paper, step by step: junk moves everything after it up, trapezoids under the curve."""
    precisions = []
    for query, entry in enumerate(entries):
        if not len(entry["ok"]):
            continue
        positions = np.flatnonzero(np.isin(ranks[:, query], entry["ok"]))
        junk = np.flatnonzero(np.isin(ranks[:, query], entry["junk"]))
        positions = [position - np.sum(junk < position) for position in positions]
        area = 0.0
        for found, rank in enumerate(positions):
            before = 1.0 if rank == 0 else found / rank
            after = (found + 1) / (rank + 1)
            area += (before + after) / 2 / len(entry["ok"])
        precisions.append(area)
    return np.mean(precisions)


@pytest.mark.parametrize(
    ("protocol", "right", "junk"),
    [
        ("easy", ["easy"], ["junk", "hard"]),
        ("medium", ["easy", "hard"], ["junk"]),
        ("hard", ["hard"], ["junk", "easy"]),
    ],
)
def test_map_is_that_of_the_published_procedure(place, protocol, right, junk):
    folder, written = place
    dataset = opened(folder)
    rng = np.random.default_rng(1)
    gallery, queries = rng.standard_normal((GALLERY, 8)), rng.standard_normal((len(QUERIES), 8))
    relevance = dataset.relevance[protocol]
    found = retrieve(
        queries[relevance.queries], gallery, relevance.matches, relevance.ignored, trapezoid=relevance.trapezoid
    )
    unit = [table / np.linalg.norm(table, axis=1, keepdims=True) for table in (gallery, queries)]
    ranks = np.argsort(-(unit[0] @ unit[1].T), axis=0)
    entries = [
        {key: np.concatenate([np.array(entry[kind], int) for kind in kinds]) for key, kinds in
         (("ok", right), ("junk", junk))}
        for entry in written["gnd"]
    ]  # fmt: skip
    assert found.average_precision.mean() == pytest.approx(published_map(ranks, entries), abs=1e-9)
    assert len(relevance.queries) == (3 if protocol == "easy" else 4)


def test_queries_are_cut_to_the_landmark_and_know_its_name(place):
    dataset = opened(place[0])
    assert decode(dataset.test.load(0)).size == (16, 10)
    assert decode(dataset.train.load(0)).size == (24, 16)
    assert dataset.classes == ("all_souls", "radcliffe_camera", "worcester")
    np.testing.assert_array_equal(dataset.test.labels, [0, 0, 1, 2])
    assert set(dataset.train.labels) == {-1}


def test_limit_draws_queries_and_keeps_the_gallery(place):
    dataset = open_dataset(f"roxford5k:{place[0]}", cache=place[0], limit=2)
    assert (len(dataset.test), len(dataset.train)) == (2, GALLERY)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("planted",)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(place, monkeypatch, tmp_path):
    folder, written = place
    monkeypatch.chdir(tmp_path)
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(written | {"extra": Evil()}))
    with pytest.raises(DataError, match=r"needs posix\.mkdir, which is not allowed in a ground truth"):
        opened(folder)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("change", ["no gnd", "row", "count", "not a dict"])
def test_a_ground_truth_of_another_form_is_one_line(place, change):
    folder, written = place
    if change == "row":
        written["gnd"][0]["hard"] = [GALLERY]
    elif change == "count":
        written["gnd"].pop()
    else:
        written = {"imlist": []} if change == "no gnd" else [1, 2]
    (folder / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(written))
    with pytest.raises(DataError, match="has another form than imlist, qimlist and gnd"):
        opened(folder)


def test_damaged_and_missing_files_are_named(place):
    folder, _ = place
    (folder / "jpg" / "photo_000007.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 44 photographs are missing, the first is .*photo_000007\.jpg"):
        opened(folder)
    file = folder / "gnd_roxford5k.pkl"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match="is not a readable ground truth"):
        opened(folder)
    file.unlink()
    with pytest.raises(DataError, match=r"gnd_roxford5k\.pkl cannot be read: No such file"):
        opened(folder)


def test_paris_has_its_own_name(place):
    folder, _ = place
    (folder / "gnd_roxford5k.pkl").rename(folder / "gnd_rparis6k.pkl")
    assert open_dataset(f"rparis6k:{folder}", cache=folder).name == "rparis6k"
