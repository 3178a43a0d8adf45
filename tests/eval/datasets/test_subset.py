"""A limit draws the same images for the same seed, in balance of classes, and keeps what is right right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimeval.datasets import Dataset, Relevance, Split
from mimeval.datasets.dataset import others_of_class
from mimeval.datasets.subset import balanced, limited
from mimeval.errors import DataError


def split(labels, name="image"):
    return Split(
        tuple(f"{name}{row}" for row in range(len(labels))),
        np.asarray(labels, np.int64),
        lambda row: f"{name}{row}".encode(),
        f"{name} {list(labels)}",
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 3))
def test_classes_differ_by_one_image_as_far_as_their_sizes_allow(labels, count, seed):
    part = split(labels)
    rows = balanced(part, count, seed)
    sizes, drawn = np.bincount(labels, minlength=6), np.bincount(part.labels[rows], minlength=6)
    assert len(rows) == min(count, len(labels))
    assert len(set(rows.tolist())) == len(rows)
    assert drawn[drawn < sizes].min(initial=99) >= drawn.max() - 1


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(0, 3))
def test_a_larger_draw_holds_the_smaller(labels, seed):
    part = split(labels)
    assert set(balanced(part, len(labels) // 2, seed)) <= set(balanced(part, len(labels) // 2 + 1, seed))


def test_taken_images_keep_their_name_label_and_content():
    part = split([0, 1, 2, 3]).take(np.array([3, 1]))
    assert (part.names, part.labels.tolist(), part.load(0)) == (("image3", "image1"), [3, 1], b"image3")
    assert part.digest != split([0, 1, 2, 3]).digest
    assert part.take(np.array([1])).load(0) == b"image1"


def test_limits_of_both_parts():
    dataset = Dataset("x", ("a", "b"), split([0, 1] * 20), split([0, 1] * 30, "train"))
    assert [len(limited(dataset, 6, None, 0).test), len(limited(dataset, 6, None, 0).train)] == [6, 60]
    assert [len(limited(dataset, 6, 10, 0).test), len(limited(dataset, 6, 10, 0).train)] == [6, 10]
    assert [len(limited(dataset, None, 10, 0).test), len(limited(dataset, None, 10, 0).train)] == [40, 10]
    assert limited(dataset, 1000, None, 0).digest == dataset.digest
    assert limited(dataset, 6, None, 0).test.digest != limited(dataset, 6, None, 1).test.digest


def test_images_that_search_each_other_lose_whole_classes():
    labels = np.repeat(np.arange(10), 4)
    dataset = Dataset("x", tuple("abcdefghij"), split(labels), relevance={"": others_of_class(labels)})
    smaller = limited(dataset, 13, None, 0)
    relevance = smaller.relevance[""]
    assert len(smaller.test) == 12
    for row, matches, ignored in zip(relevance.queries, relevance.matches, relevance.ignored, strict=True):
        assert ignored.tolist() == [row]
        assert set(smaller.test.labels[matches]) == {smaller.test.labels[row]}
        assert len(matches) == 3
    with pytest.raises(DataError, match="--limit 7 is less than two classes of x"):
        limited(dataset, 7, None, 0)


def test_queries_of_a_gallery_are_drawn_and_the_gallery_stays_whole():
    relevance = Relevance(
        np.array([0, 2, 3]),
        (np.array([5]), np.array([6, 7]), np.array([8])),
        (np.array([1]), np.array([], np.int64), np.array([2])),
    )
    dataset = Dataset("x", ("a",), split([0, 0, 1, 1]), split([-1] * 9, "gallery"), {"hard": relevance})
    drawn = limited(dataset, 2, None, 0)
    assert (len(drawn.test), len(drawn.train)) == (2, 9)
    assert "the gallery is always complete" in limited(dataset, 2, 5, 0).notes[0]
    of_name = {f"image{query}": matches for query, matches in zip(relevance.queries, relevance.matches, strict=True)}
    for row, matches in zip(drawn.relevance["hard"].queries, drawn.relevance["hard"].matches, strict=True):
        assert matches is of_name[drawn.test.names[row]]
