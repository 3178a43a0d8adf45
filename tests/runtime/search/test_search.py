"""Neighbours of images: those that a comparison with every vector finds, embedded once, of one embedding space."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mimeval import knn
from mimruntime import Embedder, read_vectors
from mimruntime.cli import COMMANDS
from mimruntime.cli.frame import make_program
from mimruntime.errors import SpaceError
from mimruntime.search.cache import VectorCache, image_key
from mimruntime.search.collection import Collection, open_collection, open_stored
from mimruntime.search.gallery import class_folders, gallery_of, open_gallery
from mimruntime.search.index import Index
from mimruntime.search.stored import read_stored

PROGRAM = make_program(COMMANDS)


def run(*arguments):
    return CliRunner().invoke(PROGRAM, [str(argument) for argument in arguments])


@pytest.fixture
def folder(photos, tmp_path):
    """Photographs in two class folders, and a file that is none."""
    for number, photo in enumerate(photos):
        place = tmp_path / "photos" / ("even" if number % 2 == 0 else "odd") / photo.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, place)
    (tmp_path / "photos" / "odd" / "text.jpg").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def embedder(toy_artifact):
    with Embedder.open(toy_artifact, engine="onnxruntime", check_reference=False) as opened:
        yield opened


def opened(embedder, folder, tmp_path):
    gallery = open_gallery([str(folder)])
    return open_collection(embedder, gallery, roots=[str(folder)], cache=tmp_path / "cache")


def test_the_command_prints_the_neighbours_that_numpy_finds(toy_artifact, embedder, folder, tmp_path, photo):
    done = run("search", toy_artifact, folder, "--query", photo, "--top", 3, "--cache", tmp_path / "cache", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    paths = [path for path in open_gallery([str(folder)]).paths if not path.endswith("text.jpg")]
    cosines = embedder.embed(paths) @ embedder.embed([photo])[0]
    nearest = np.argsort(-cosines)[:3]
    found = answer["queries"][0]["neighbours"]
    assert [each["path"] for each in found] == [paths[row] for row in nearest]
    assert [each["cosine"] for each in found] == pytest.approx(cosines[nearest], abs=1e-5)
    assert answer["embedding_space"] == embedder.space


def test_a_name_says_nothing_to_the_terminal(toy_artifact, photo, tmp_path):
    for name in ("red\x1b[31m\x07.jpg", "two\nlines.jpg"):
        (tmp_path / "photos" / "in").mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / "photos" / "in" / name)
    shutil.copy(photo, os.fsencode(tmp_path / "photos") + b"/\xff\xfe.jpg")
    done = run("search", toy_artifact, tmp_path / "photos", "--query", photo, "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    shown = {line.partition("photos/")[2] for line in done.stdout.splitlines()[1:4]}
    assert shown == {r"\xff\xfe.jpg", r"in/red\x1b[31m\x07.jpg", r"in/two\nlines.jpg"}


def test_what_was_embedded_is_kept_and_only_a_changed_image_is_embedded_again(embedder, folder, tmp_path):
    first = opened(embedder, folder, tmp_path)
    assert len(list(first.fill())) == 9
    assert len(first.index) == 8
    assert len(first.errors) == 1
    again = opened(embedder, folder, tmp_path)
    assert [again.gallery.names[number] for number in again.fill()] == ["odd/text.jpg"]
    assert again.errors == first.errors
    for number in again.index.known():
        np.testing.assert_array_equal(again.index.vector(number), first.index.vector(number))
    changed = Path(again.gallery.paths[2])
    shutil.copy(again.gallery.paths[0], changed)
    assert [number for number in opened(embedder, folder, tmp_path).fill() if number not in first.errors] == [2]


def test_vectors_of_another_graph_of_the_same_space_are_kept_apart(embedder, toy_without_selection, folder, tmp_path):
    assert len(list(opened(embedder, folder, tmp_path).fill())) == 9
    with Embedder.open(toy_without_selection, engine="onnxruntime", check_reference=False) as other:
        assert other.space == embedder.space
        assert len(list(opened(other, folder, tmp_path).fill())) == 9


def test_what_was_embedded_before_an_interruption_is_kept(embedder, folder, tmp_path):
    halfway = opened(embedder, folder, tmp_path).fill()
    assert [next(halfway) for _ in range(3)] == [0, 1, 2]
    halfway.close()
    assert list(opened(embedder, folder, tmp_path).fill()) == list(range(3, 9))


def test_a_damaged_part_costs_its_images_and_no_more(tmp_path):
    cache = VectorCache(tmp_path / "kept", 4)
    key = image_key(__file__)
    cache.write([(key, np.ones(4, np.float32))])
    (tmp_path / "kept" / "part-x.npz").write_bytes(b"PK\3\4 cut")
    (found,) = cache.read().items()
    assert found[0] == key
    assert VectorCache(tmp_path / "kept", 5).read() == {}  # vectors of another length


@pytest.mark.parametrize("out", ["vectors.npz", "vectors.parquet", "shards/"])
def test_what_embed_wrote_is_taken_as_it_is(toy_artifact, embedder, folder, tmp_path, photo, out):
    assert run("embed", toy_artifact, folder, "--out", f"{tmp_path}/{out}", "--store", "fp16").exit_code == 0
    arguments = ("search", toy_artifact, tmp_path / out, "--query", photo, "--cache", tmp_path / "none")
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].split() == ["1.000", str(folder / "odd" / photo.name)]
    assert "8 images, flat index of 16 dimensions" in done.stdout
    assert not (tmp_path / "none").exists()


def test_another_precision_is_named_in_the_log(embedder, folder, tmp_path, caplog, toy_artifact):
    assert run("embed", toy_artifact, folder, "--out", tmp_path / "v.npz").exit_code == 0
    stored = read_vectors(tmp_path / "v.npz")
    gallery = gallery_of(stored.paths)
    caplog.clear()
    open_stored(embedder, gallery, stored)
    assert not caplog.messages
    open_stored(embedder, gallery, replace(stored, precision="int8"))
    assert "the vectors and the queries: one embedding space, computed in fp32 and in int8" in caplog.messages[0]


def test_vectors_of_another_space_are_refused(toy_artifact, toy_whitened, folder, tmp_path, photo):
    assert run("embed", toy_artifact, folder, "--out", tmp_path / "vectors.npz").exit_code == 0
    done = run("search", toy_whitened, tmp_path / "vectors.npz", "--query", photo)
    assert done.exit_code == 1
    assert "'toy' embeds into b1eac4edb1eac4ed; name the artifact" in str(done.exception)


def test_cut_vectors_are_searched_by_cut_queries(toy_whitened, folder, tmp_path, photo):
    assert run("embed", toy_whitened, folder, "--out", tmp_path / "vectors.npz", "--dims", 4).exit_code == 0
    done = run("search", toy_whitened, tmp_path / "vectors.npz", "--query", photo, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["queries"][0]["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-5)


def test_shards_of_an_unfinished_job_are_refused(toy_artifact, folder, tmp_path):
    out = tmp_path / "shards"
    assert run("embed", toy_artifact, folder, "--out", out, "--shard-size", 4).exit_code == 0
    assert len(read_stored(out).paths) == 9
    next(out.glob("part-0000001*")).unlink()
    done = run("search", toy_artifact, out, "--query", folder)
    assert "lacks 1 of 3 shards" in str(done.exception)


def test_stored_vectors_of_a_folder_are_taken_and_the_rest_is_embedded(toy_artifact, embedder, folder, tmp_path):
    assert run("embed", toy_artifact, folder / "even", "--out", tmp_path / "even.npz").exit_code == 0
    stored = read_vectors(tmp_path / "even.npz")
    gallery = open_gallery([str(folder)])
    made = open_collection(embedder, gallery, roots=[str(folder)], cache=tmp_path / "cache", stored=stored)
    assert len(made.index) == 4
    assert [gallery.labels[number] for number in made.fill()] == ["odd"] * 5


def test_many_vectors_are_sorted_into_lists_that_are_kept(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, 32))
    vectors = (centres[rng.integers(60, size=3000)] + 0.4 * rng.standard_normal((3000, 32))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def made(count=3000, vectors=vectors):
        index = Index(32, 3000, flat_most=1000)
        index.add(range(count), vectors[:count])
        return index

    exact, lists = made(), made()
    assert exact.kind == "flat"
    lists.settle(tmp_path)
    assert lists.kind == "IVF"
    expected, found = exact.search(vectors[:200], 10)[0], lists.search(vectors[:200], 10)[0]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(expected, found, strict=True)])
    assert recall > 0.95
    np.testing.assert_array_equal(lists.vector(7), vectors[7])
    assert 7 not in lists.nearest(vectors[7], 5, without=7).numbers

    def made_again(self, order):
        raise NotImplementedError("trained once more")

    monkeypatch.setattr(Index, "_sorted_into_lists", made_again)
    again = made()
    again.settle(tmp_path)
    np.testing.assert_array_equal(again.search(vectors[:50], 10)[0], lists.search(vectors[:50], 10)[0])
    for other in (made(2999), made(vectors=vectors[::-1])):
        with pytest.raises(NotImplementedError):
            other.settle(tmp_path)
    (tmp_path / "index.faiss").write_bytes(b"damaged")
    with pytest.raises(NotImplementedError):
        made().settle(tmp_path)


def test_the_share_of_right_votes_is_that_of_the_evaluation(embedder, tmp_path):
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=300)
    vectors = (rng.standard_normal((4, 16))[labels] + 1.5 * rng.standard_normal((300, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    paths = []
    for number, label in enumerate(labels):
        paths.append(tmp_path / f"class{label}" / f"{number:03}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        paths[-1].touch()
    gallery = open_gallery([str(tmp_path)])
    order = [int(Path(name).stem) for name in gallery.names]
    made = Collection(embedder, gallery, None, 16, "space")
    made.add(range(300), vectors[order])
    expected = knn.leave_one_out(vectors, labels) == labels
    assert made.judge() == (expected.sum(), 300)
    predicted = made.predict(made.neighbours(0, 20))
    assert predicted == f"class{knn.leave_one_out(vectors, labels)[order[0]]}"


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat/a.jpg", "dog/b.jpg"], ("cat", "dog")),
        (["train/cat/a.jpg", "val/dog/b.jpg", "train/cat/images/c.jpg"], ("cat", "dog", "cat")),
        (["train/a.jpg", "val/b.jpg"], ()),
        (["cat/a.jpg", "b.jpg"], ()),
        (["cat/a.jpg", "cat/b.jpg"], ()),
    ],
)
def test_folders_are_classes_where_every_image_is_in_one(names, labels):
    assert class_folders(names) == labels


def test_vectors_of_two_spaces_never_meet_in_python(toy_whitened, toy_artifact, embedder, folder, tmp_path):
    assert run("embed", toy_whitened, folder, "--out", tmp_path / "other.npz").exit_code == 0
    with pytest.raises(SpaceError):
        open_collection(
            embedder,
            open_gallery([str(folder)]),
            roots=[str(folder)],
            cache=tmp_path,
            stored=read_vectors(tmp_path / "other.npz"),
        )
