"""What a later run takes from an earlier one, where images or errors have changed in between."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from mimruntime.errors import OutputError
from mimruntime.results import Description, Result
from mimruntime.search.collection import open_collection
from mimruntime.search.gallery import open_gallery
from mimruntime.search.index import Index

DIM = 32


class Encoder:
    """An encoder whose vectors are drawn by the content of the files; images named in `failing` have an error."""

    url = "http://encoder"

    def __init__(self):
        self.failing = {}

    def describe(self):
        return Description("fake", "0" * 16, DIM, "none", "cpu", "fp32", (1,), None)

    def stream(self, sources):
        for source in sources:
            if error := self.failing.get(Path(source).name):
                yield Result(source, None, error)
            else:
                vector = np.random.default_rng(list(Path(source).read_bytes())).standard_normal(DIM)
                yield Result(source, (vector / np.linalg.norm(vector)).astype(np.float32), None)


@pytest.fixture
def encoder():
    return Encoder()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(300):
        (tmp_path / "photos" / f"{number:03}.png").write_text(f"image {number}")
    return tmp_path / "photos"


@pytest.fixture
def run(encoder, folder, tmp_path):
    """A run that embeds what has no vector yet, with an IVF index over more than 100 vectors."""

    def run():
        gallery = open_gallery([str(folder)])
        made = open_collection(encoder, gallery, roots=[str(folder)], cache=tmp_path / "cache")
        grown, made.index = made.index, Index(DIM, len(gallery), flat_most=100)
        for number in grown.known():
            made.index.add([number], grown.vector(number)[None])
        list(made.fill())
        assert made.index.kind == "IVF"
        return made

    return run


def own_nearest(made):
    """How many images are their own nearest neighbours, in an index that looks into every list."""
    made.index._faiss.nprobe = made.index._faiss.nlist
    vectors = np.stack([next(made.encoder.stream([path])).vector for path in made.gallery.paths])
    return int((made.index.search(vectors, 1)[0][:, 0] == np.arange(len(vectors))).sum())


def test_lists_of_an_image_before_it_was_edited_are_not_taken(run, folder):
    assert own_nearest(run()) == 300
    (folder / "007.png").write_text("edited in place")
    for made in (run(), run()):
        assert own_nearest(made) == 300
        np.testing.assert_array_equal(
            made.index.vector(299), next(made.encoder.stream([made.gallery.paths[299]])).vector
        )


def test_lists_are_taken_whatever_the_order_of_embedding_was(run, folder, monkeypatch):
    run()
    (folder / "007.png").write_text("edited in place")
    run()

    def made_again(*_):
        raise NotImplementedError("trained once more")

    monkeypatch.setattr(Index, "_sorted_into_lists", made_again)
    assert own_nearest(run()) == 300


def test_an_image_without_a_vector_is_tried_again(run, encoder):
    encoder.failing = {"003.png": "003.png: Too many open files", "004.png": "http://encoder answered 413: too large"}
    assert set(run().errors) == {3, 4}
    encoder.failing = {}
    made = run()
    assert made.errors == {}
    assert own_nearest(made) == 300


def test_an_error_that_an_earlier_version_kept_is_tried_again(run, encoder, folder, tmp_path):
    run()
    (part,) = (tmp_path / "cache").glob("search/*/part-*.npz")
    with np.load(part) as arrays:
        keys, vectors = arrays["keys"], arrays["vectors"].copy()
    errors = np.full(len(keys), "", "<U40")
    vectors[5], errors[5] = 0, "005.png: Permission denied"
    np.savez(part, keys=keys, vectors=vectors, errors=errors)
    made = run()
    assert made.errors == {}
    assert own_nearest(made) == 300


def test_lists_whose_damaged_header_asks_for_all_memory_are_built_again(run, monkeypatch):
    run()

    def read_index(_):
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(faiss, "read_index", read_index)
    assert own_nearest(run()) == 300


def test_lists_that_cannot_be_replaced_are_an_error_of_one_line(run, tmp_path):
    run()
    (record,) = (tmp_path / "cache").glob("search/*/index.json")
    record.unlink()
    (record / "a folder").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"cannot replace .*index\.json \(.*\); name another folder: --cache"):
        run()
