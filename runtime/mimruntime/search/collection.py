"""The images of a gallery in one embedding space: embed those that are not cached, and search at any time."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

import numpy as np

from mimruntime.decode import Source, describe
from mimruntime.errors import ImageError, SpaceError
from mimruntime.image_paths import as_text
from mimruntime.precisions import warn_of_mixing
from mimruntime.search.cache import VectorCache, cache_folder, image_key
from mimruntime.search.encoders import Encoder, graph_of
from mimruntime.search.gallery import Gallery
from mimruntime.search.index import Index, Neighbours
from mimruntime.search.voting import K, vote
from mimruntime.vectors import Vectors

_PART = 512
"""Number of images between two writes of the cache, which a crash can lose."""
_JUDGED, _AT_ONCE = 2000, 64


class Collection:
    """Searchable images; made by `open_collection`.

    Args:
        encoder: embeds the queries, and images without a vector.
        gallery: the images.
        cache: stores new vectors; None if no more images will be embedded.
        dim: length of a vector.
        space: embedding space of the vectors.

    Attributes:
        errors: the errors of images without a vector, by image number.

    """

    def __init__(self, encoder: Encoder, gallery: Gallery, cache: VectorCache | None, dim: int, space: str) -> None:
        self.encoder, self.gallery, self.space = encoder, gallery, space
        self.about = encoder.describe()
        self.index = Index(dim, len(gallery))
        self.errors: dict[int, str] = {}
        self._cache = cache
        self._dim = dim
        self._classes = np.unique(gallery.labels, return_inverse=True)[1] if gallery.labels else np.empty(0, np.int64)

    @property
    def done(self) -> int:
        """Number of images with a vector or an error."""
        return len(self.index) + len(self.errors)

    def add(self, numbers: Sequence[int], vectors: np.ndarray) -> None:
        """Add existing vectors, float32 (n, D); vectors with NaN count as missing."""
        there = np.isfinite(vectors).all(axis=1)
        self.index.add(list(np.asarray(numbers)[there]), vectors[there])

    def fill(self) -> Generator[int, None, None]:
        """Embed every image without a vector or error, and yield its number when done; it may be stopped at any time.

        Raises:
            EngineError: a run failed; earlier results are stored.
            OutputError: the results cannot be stored.

        """
        missing = [n for n in range(len(self.gallery)) if n not in self.index and n not in self.errors]
        fresh: list[tuple[bytes, np.ndarray]] = []
        keys = {number: image_key(self.gallery.paths[number]) for number in missing}
        try:
            results = self.encoder.stream(self.gallery.paths[number] for number in missing)
            for number, result in zip(missing, results, strict=True):
                # An error is not kept: the next run may have the right, the memory or the service that this one lacks.
                if result.vector is None:
                    self.errors[number] = as_text(result.error or "cannot be read")
                else:
                    self.index.add([number], _cut(result.vector[None], self._dim))
                    if key := keys[number]:
                        fresh.append((key, result.vector))
                if len(fresh) == _PART:
                    self._keep(fresh)
                yield number
        finally:
            self._keep(fresh)
        if self._cache is not None:
            self.index.settle(self._cache.folder)

    def embed(self, source: Source) -> np.ndarray:
        """Return the vector of a query, float32 (D,).

        Raises:
            ImageError: the query cannot be decoded.
            EngineError: the run failed.

        """
        (result,) = self.encoder.stream([source])
        if result.vector is None:
            raise ImageError(result.error or f"{describe(source)} cannot be read")
        return np.asarray(_cut(result.vector[None], self._dim)[0])

    def nearest(self, query: np.ndarray, count: int) -> Neighbours:
        """Return the nearest images to a vector from `embed`."""
        return self.index.nearest(query, count)

    def neighbours(self, number: int, count: int) -> Neighbours:
        """Return the nearest other images to an image.

        Raises:
            ImageError: the image has no vector, or none yet.

        """
        if number not in self.index:
            raise ImageError(self.errors.get(number, f"image {number} is not embedded yet; wait a moment"))
        return self.index.nearest(self.index.vector(number), count, without=number)

    def predict(self, neighbours: Neighbours) -> str | None:
        """Return the class by vote of the first `K` neighbours; None without classes or neighbours."""
        numbers, cosines = neighbours.numbers[:K], neighbours.cosines[:K]
        if not self.gallery.labels or not len(numbers):
            return None
        labels, first = np.unique(self._classes[numbers], return_index=True)
        chosen = vote(self._classes[numbers][None], cosines[None])[0]
        return self.gallery.labels[int(numbers[first[labels == chosen][0]])]

    def judge(self) -> tuple[int, int]:
        """Return how many images their neighbours classify correctly, and of how many: up to 2,000, drawn with a fixed seed."""
        known = self.index.known()
        if not self.gallery.labels or len(known) <= K:
            return 0, 0
        drawn = np.random.default_rng(0).permutation(known)[:_JUDGED]
        right = sum(self._right(drawn[at : at + _AT_ONCE]) for at in range(0, len(drawn), _AT_ONCE))
        return right, len(drawn)

    def _right(self, numbers: np.ndarray) -> int:
        vectors = np.stack([self.index.vector(number) for number in numbers])
        found, cosines = self.index.search(vectors, K + 1)
        others = (found != numbers[:, None]) & (found >= 0)
        others &= others.cumsum(axis=1) <= K
        cosines = np.where(others, cosines, -np.inf).astype(np.float32)
        order = np.argsort(-cosines, axis=1, kind="stable")
        labels = np.take_along_axis(self._classes[found], order, axis=1)
        votes = vote(labels, np.take_along_axis(cosines, order, axis=1))
        return int((votes == self._classes[numbers]).sum())

    def _keep(self, fresh: list[tuple[bytes, np.ndarray]]) -> None:
        if self._cache is not None:
            self._cache.write(fresh)
        fresh.clear()


def open_collection(
    encoder: Encoder, gallery: Gallery, *, roots: Iterable[str], cache: Path, stored: Vectors | None = None
) -> Collection:
    """Return a collection of a gallery with its cached vectors and those of `stored`, from `mimexport embed`.

    Args:
        encoder: embeds the other images.
        gallery: the images.
        roots: the folders of the images; each set of folders has its own vectors in the cache.
        cache: the folder of the cache.
        stored: vectors for the images that it names.

    Raises:
        SpaceError: `stored` has another embedding space.
        OutputError: the cache cannot be written.

    """
    about = encoder.describe()
    places = [str(Path(root).absolute()) for root in roots]
    folder = cache_folder(cache, "search", (about.space, about.precision, graph_of(encoder), *places))
    kept = VectorCache(folder, about.dim)
    if stored is None:
        made = Collection(encoder, gallery, kept, about.dim, about.space)
    else:
        check_space(encoder, stored)
        made = Collection(encoder, gallery, kept, stored.codec.dim, stored.space)
        _take_stored(made, stored)
    _take_kept(made, kept)
    return made


def open_stored(encoder: Encoder, gallery: Gallery, stored: Vectors) -> Collection:
    """Return a collection of the vectors that `mimexport embed` wrote, with their own paths as the gallery.

    Raises:
        SpaceError: they have another embedding space.

    """
    check_space(encoder, stored)
    made = Collection(encoder, gallery, None, stored.codec.dim, stored.space)
    made.add(range(len(gallery)), stored.vectors)
    made.errors |= {number: error for number, error in enumerate(stored.errors) if error is not None}
    return made


def check_space(encoder: Encoder, stored: Vectors) -> None:
    """Refuse vectors that cannot be compared with those of `encoder`; fewer dimensions of the same space can.

    Warn in the log if the precision differs.
    """
    about = encoder.describe()
    if stored.space.partition("/")[0] != about.space:
        raise SpaceError(
            f"the vectors are of space {stored.space} ({stored.model}), '{about.name}' embeds into {about.space};"
            " name the artifact they were made with, or embed the images again"
        )
    warn_of_mixing("the vectors and the queries", (stored.precision, about.precision))


def _take_stored(collection: Collection, stored: Vectors) -> None:
    rows = {os.path.abspath(path): row for row, path in enumerate(stored.paths) if stored.errors[row] is None}  # noqa: PTH100 - links stay
    found = [(n, rows.get(os.path.abspath(as_text(path)))) for n, path in enumerate(collection.gallery.paths)]  # noqa: PTH100
    there = [(number, row) for number, row in found if row is not None]
    if there:
        numbers, taken = zip(*there, strict=True)
        collection.add(numbers, stored.vectors[list(taken)])


def _take_kept(collection: Collection, cache: VectorCache) -> None:
    kept = cache.read()
    numbers, vectors = [], []
    for number, path in enumerate(collection.gallery.paths):
        vector = kept.get(image_key(path) or b"") if number not in collection.index else None
        if vector is not None:
            numbers.append(number)
            vectors.append(vector)
    if numbers:
        collection.add(numbers, _cut(np.stack(vectors), collection.index.dim))


def _cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    """Return the first dimensions of unit vectors (n, D), normalized again."""
    if vectors.shape[1] == dim:
        return vectors
    cut = vectors[:, :dim]
    return np.asarray(cut / np.linalg.norm(cut, axis=1, keepdims=True), np.float32)
