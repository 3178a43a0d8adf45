"""What is stored of a vector reads back near it, whatever file or artifact it came from, and never in another space's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from collection_helpers import mimexport

from mimruntime import Embedder, read_vectors, vectors
from mimruntime.artifact import Artifact
from mimruntime.errors import OptionError, VectorsError
from mimruntime.manifest import Manifest, decode, encode
from mimruntime.storage import STORES, Codec, codec_for, measure_statistics, read_codec, rotation
from mimruntime.vectors import open_writer

DIM = 48
LEAST_COSINE = {"fp32": 1 - 1e-6, "fp16": 1 - 1e-6, "int8": 1 - 1e-4, "bits": 0.75}
"""Of vectors of cosine 0.9 to each other, as those of mean patches are: bits hold what is left of them when the mean is gone."""


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def parallel() -> np.ndarray:
    """A thousand unit vectors around a common mean, with axes of falling importance."""
    random = np.random.default_rng(0)
    return unit(random.standard_normal(DIM) + random.standard_normal((1000, DIM)) * np.geomspace(1, 0.02, DIM))


def manifest_of(toy: Path, x: np.ndarray, *, whitened: bool = True, statistics: bool = True) -> Manifest:
    found = Artifact.open(toy).manifest
    embedding = msgspec.structs.replace(found.embedding, dim=x.shape[1], whitening="whitened" if whitened else None)
    return msgspec.structs.replace(
        found, embedding=embedding, statistics=measure_statistics(x[:300]) if statistics else None
    )


def nearest(queries: np.ndarray, gallery: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :count]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a.tolist(), b.tolist(), strict=True)]))


@pytest.mark.parametrize("dim", [None, 20])
@pytest.mark.parametrize("store", STORES)
def test_what_is_stored_reads_back(toy_artifact: Path, parallel: np.ndarray, store: Any, dim: int | None) -> None:
    manifest = manifest_of(toy_artifact, parallel)
    codec = codec_for(manifest, store, dim)
    codes = codec.encode(parallel)
    expected = unit(parallel[:, :dim])
    bytes_of_one = {"fp32": 4 * codec.dim, "fp16": 2 * codec.dim, "int8": codec.dim, "bits": -(-codec.dim // 8)}
    assert codes.nbytes == len(parallel) * bytes_of_one[store]
    again = read_codec(codec.labels(), codec.space, codec.dim)
    read = again.decode(codes)
    assert read.dtype == np.float32
    assert np.abs(np.linalg.norm(read, axis=1) - 1).max() < 1e-6
    assert (read * expected).sum(axis=1).min() > LEAST_COSINE[store]
    assert codec.space == manifest.embedding_space + (f"/{dim}" if dim else "")


def test_int8_keeps_the_neighbours_of_nearly_parallel_vectors_and_bits_find_them_among_a_few(
    toy_artifact: Path, parallel: np.ndarray
) -> None:
    close = unit(
        parallel.mean(axis=0) + 0.03 * (parallel - parallel.mean(axis=0))
    )  # cosine 0.999 and more, as [cls] has
    manifest = manifest_of(toy_artifact, close)
    expected = nearest(close[:200], close, 10)
    int8, bits = codec_for(manifest, "int8"), codec_for(manifest, "bits")
    assert overlap(nearest(close[:200], int8.decode(int8.encode(close)), 10), expected) > 0.95
    signs = np.unpackbits(bits.encode(close), axis=1).astype(np.float32) * 2 - 1
    candidates = nearest(signs[:200], signs, 100)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(expected, candidates, strict=True)]) > 0.75


def test_a_dimension_that_is_always_the_same_and_vectors_beyond_the_range_stay_finite(toy_artifact: Path) -> None:
    x = np.random.default_rng(1).standard_normal((400, 16)) * np.geomspace(1, 1e-3, 16)
    x[:, 15] = 0
    x = unit(x)
    codec = codec_for(manifest_of(toy_artifact, x), "int8")
    far = unit(np.eye(16, dtype=np.float32))
    codes = codec.encode(np.concatenate([x, far]))
    assert (codes.min(), codes.max()) == (-127, 127)  # saturated: -128 would be the opposite sign of nothing
    assert np.isfinite(codec.decode(codes)).all()


def test_bits_lie_as_other_programs_pack_them() -> None:
    codec = Codec("bits", 9, "s", np.zeros(9, np.float32), np.ones(9, np.float32))
    turned = np.array([[1, -1, -1, -1, -1, -1, -1, 1, 1]], np.float32)
    assert codec.encode(turned @ rotation(9)).tolist() == [[0b10000001, 0b10000000]]


@pytest.mark.parametrize("dim", [1, 9, 192])
def test_the_rotation_is_one_and_spreads_a_single_axis_over_all(dim: int) -> None:
    turn = rotation(dim)
    assert np.abs(turn @ turn.T - np.eye(dim)).max() < 1e-5
    assert np.abs(turn).max() <= np.sqrt(2 / dim) + 1e-6 if dim > 1 else True


def test_what_the_artifact_does_not_allow_is_refused_in_a_line(toy_artifact: Path, parallel: np.ndarray) -> None:
    plain = manifest_of(toy_artifact, parallel, whitened=False, statistics=False)
    assert codec_for(plain, "fp16", DIM).space == plain.embedding_space
    with pytest.raises(OptionError, match=r"20 dimensions: vectors of 'toy' are not whitened.* build it with --whiten"):
        codec_for(plain, "fp32", 20)
    for size in (0, DIM + 1):
        with pytest.raises(OptionError, match=f"{size} dimensions: vectors of 'toy' have 48; give 1 to 48"):
            codec_for(plain, "fp32", size)
    for store in ("int8", "bits"):
        with pytest.raises(
            OptionError, match=rf"{store}: 'toy' has no statistics .* build it again with --calibrate FOLDER"
        ):
            codec_for(plain, store)  # type: ignore[arg-type]


def test_statistics_are_kept_in_the_manifest_and_change_no_space(toy_artifact: Path, parallel: np.ndarray) -> None:
    manifest = manifest_of(toy_artifact, parallel)
    again = decode(encode(manifest))
    assert again.statistics == manifest.statistics
    assert again.embedding_space == Artifact.open(toy_artifact).manifest.embedding_space
    short = measure_statistics(parallel[:, :5])
    with pytest.raises(ValueError, match="has statistics for vectors of another length"):
        decode(encode(msgspec.structs.replace(manifest, statistics=short)))


@pytest.mark.parametrize("suffix", vectors.SUFFIXES)
@pytest.mark.parametrize("store", STORES)
def test_a_file_says_how_to_read_it(
    toy_artifact: Path, parallel: np.ndarray, tmp_path: Path, store: Any, suffix: str
) -> None:
    codec = codec_for(manifest_of(toy_artifact, parallel), store, 40)
    out = tmp_path / f"v{suffix}"
    with open_writer(out, codec=codec, model="toy", precision="fp32") as writer:
        writer.add("a", parallel[0], None)
        writer.add("b", None, "b: is empty")
        writer.add("c", parallel[1], None)
    read = read_vectors(out)
    assert read.space.endswith("/40")
    assert np.isnan(read.vectors[1]).all()
    assert read.codes.dtype == codec.dtype
    assert (read.codes[[0, 2]] == codec.encode(parallel[:2])).all()
    assert (read.vectors[[0, 2]] == codec.decode(codec.encode(parallel[:2]))).all()
    assert (read.codec.encode(parallel) == codec.encode(parallel)).all()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"stored_as": "fp4"}, "stored as 'fp4', this program reads fp32, fp16, int8, bits; upgrade mimexport"),
        ({"stored_as": "int8"}, "stored as int8 without stored_mean and stored_scale"),
        ({"stored_as": "int8", "stored_mean": "AAAA", "stored_scale": "AAAAAA=="}, "buffer size"),
        ({"stored_as": "int8", "stored_mean": "AAAAAA==", "stored_scale": "AAAAAA=="}, "have 1 and 1 numbers"),
        ({"stored_as": "bits", "stored_dim": "16", "stored_mean": "AAAA" * 16, "stored_scale": "AAAA" * 16}, "numbers"),
        ({"stored_as": "fp16"}, "fp16 of 4 dimensions, and float32 of 4"),
    ],
)
def test_labels_that_do_not_fit_are_no_vectors(tmp_path: Path, labels: dict, reason: str) -> None:
    parts = {"embedding_space": "s", "model": "m", **labels}
    np.savez(
        tmp_path / "v.npz",
        path=np.array(["a"]), vectors=np.ones((1, 4), np.float32), error=np.array([""]),
        **{name: np.array(text) for name, text in parts.items()},
    )  # fmt: skip
    with pytest.raises(VectorsError, match=reason):
        read_vectors(tmp_path / "v.npz")


@pytest.mark.parametrize("out", ["v.parquet", "v.npz", "shards"])
def test_embed_stores_cut_codes_that_read_back(
    toy_whitened: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    with Embedder.open(toy_whitened) as embedder:
        expected = embedder.embed(photos)
        codec = codec_for(embedder.artifact.manifest, "int8", 12)
    command = ["embed", toy_whitened, *photos, "--out", tmp_path / out, "--store", "int8", "--dims", 12]
    assert mimexport(*command) == 0
    assert f"12 dimensions, int8, embedding space {codec.space}" in capsys.readouterr().out
    folder = tmp_path / out
    read = read_vectors(next(folder.glob("part-*")) if folder.is_dir() else folder)
    assert (read.space, read.codec.store, read.codes.dtype) == (codec.space, "int8", np.int8)
    assert (read.vectors * unit(expected[:, :12])).sum(axis=1).min() > 0.999
    assert (np.abs(read.codes.astype(int) - codec.encode(expected).astype(int)) <= 1).all()


def test_a_folder_holds_one_space_and_one_way_of_storing(
    toy_whitened: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["embed", toy_whitened, *photos, "--out", tmp_path / "shards"]
    assert mimexport(*command, "--dims", 12, "--store", "fp16") == 0
    capsys.readouterr()
    for other, reason in (
        (["--dims", 12], "holds vectors stored as fp16, asked for are fp32; give --store fp16"),
        (["--store", "fp16"], f"holds vectors of space {'b1eac4ed' * 2}/12 "),
    ):
        assert mimexport(*command, *other) == 1
        assert reason in capsys.readouterr().err
    assert mimexport(*command, "--dims", 12, "--store", "fp16") == 0


def test_embed_refuses_before_it_embeds(
    toy_artifact: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ("v.npz", "shards"):
        assert mimexport("embed", toy_artifact, *photos, "--out", tmp_path / out, "--dims", 12) == 1
        assert "are not whitened" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
