"""Revisited Oxford and Paris: 70 landmark queries in galleries of 5,000 or 6,300 photographs.

Radenović et al., 'Revisiting Oxford and Paris: large-scale image retrieval benchmarking' (CVPR 2018). The folder must have
the authors' layout: `gnd_roxford5k.pkl` and `jpg/`. A query is the photograph cropped to the landmark's box.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimeval.datasets.dataset import Dataset, Relevance, Split, digest_of
from mimeval.datasets.pixels import png
from mimeval.errors import DataError
from mimruntime.decode import decode
from mimruntime.errors import ImageError

PROTOCOLS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Kinds of gallery images by protocol: correct ones, and those removed from the ranking."""
# The only classes that a pickle of lists, strings, numbers and numpy arrays needs.
_ALLOWED = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


def open_revisited(name: str, path: Path) -> Dataset:
    """Read `gnd_NAME.pkl` and `jpg/` at `path`.

    Args:
        name: roxford5k or rparis6k.
        path: the folder.

    Raises:
        DataError: files are missing, or the ground truth has another form.

    """
    truth = _read_truth(path / f"gnd_{name}.pkl")
    queries, gallery = (tuple(str(image) for image in truth[key]) for key in ("qimlist", "imlist"))
    boxes = [tuple(float(edge) for edge in entry["bbx"]) for entry in truth["gnd"]]
    files = {image: path / "jpg" / f"{image}.jpg" for image in (*queries, *gallery)}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise DataError(f"{len(missing)} of {len(files)} photographs are missing, the first is {missing[0]}")
    landmarks = tuple(sorted({_landmark(query) for query in queries}))
    labels = np.array([landmarks.index(_landmark(query)) for query in queries], np.int64)
    stamps = [f"{image}\0{files[image].stat().st_size}:{files[image].stat().st_mtime_ns}" for image in files]
    test = Split(queries, labels, lambda row: _cut(files[queries[row]], boxes[row]),
                 digest_of("queries", repr(boxes), *queries, *stamps))  # fmt: skip
    train = Split(gallery, np.full(len(gallery), -1), _reader([files[image] for image in gallery]),
                  digest_of("gallery", *gallery, *stamps))  # fmt: skip
    relevance = {protocol: _relevance(truth["gnd"], *kinds) for protocol, kinds in PROTOCOLS.items()}
    return Dataset(name, landmarks, test, train, relevance)


def _relevance(truth: Sequence[Mapping[str, Any]], right: Sequence[str], junk: Sequence[str]) -> Relevance:
    """Return the relevance of a protocol; queries without correct images are excluded, as in the authors' code."""

    def rows(entry: Mapping[str, Any], kinds: Sequence[str]) -> np.ndarray:
        return np.concatenate([np.asarray(entry[kind], np.int64).ravel() for kind in kinds])

    queries = np.array([row for row, entry in enumerate(truth) if len(rows(entry, right))], np.int64)
    return Relevance(
        queries,
        tuple(rows(truth[row], right) for row in queries),
        tuple(rows(truth[row], junk) for row in queries),
        trapezoid=True,
    )


class _Unpickler(pickle.Unpickler):
    """Loads only numbers, strings, lists, dicts and arrays, because a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # name before numpy 2
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it needs {module}.{name}, which is not allowed in a ground truth")
        return super().find_class(module, name)


def _read_truth(file: Path) -> dict[str, Any]:
    try:
        truth = _Unpickler(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle raises many kinds of errors
        raise DataError(f"{file} is not a readable ground truth: {error}") from error
    try:
        _check(truth)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise DataError(f"{file} has another form than imlist, qimlist and gnd with bbx, easy, hard, junk") from error
    return dict(truth)


def _check(truth: Any) -> None:
    if not truth["qimlist"] or len(truth["gnd"]) != len(truth["qimlist"]):
        raise ValueError
    for entry in truth["gnd"]:
        rows = np.concatenate([np.asarray(entry[kind], np.int64).ravel() for kind in ("easy", "hard", "junk")])
        inside = not len(rows) or (rows.min() >= 0 and rows.max() < len(truth["imlist"]))
        if len(entry["bbx"]) != 4 or not inside:
            raise ValueError


def _landmark(query: str) -> str:
    return query.rsplit("_", 1)[0]


def _reader(files: Sequence[Path]) -> Callable[[int], bytes]:
    def read(row: int) -> bytes:
        try:
            return files[row].read_bytes()
        except OSError as error:
            raise ImageError(f"{files[row]} cannot be read: {error.strerror or error}") from error

    return read


def _cut(file: Path, box: tuple[float, ...]) -> bytes:
    left, top, right, bottom = box
    return png(np.asarray(decode(file).crop((round(left), round(top), round(right), round(bottom)))))
