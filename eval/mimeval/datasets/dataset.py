"""The records of a data set: splits of labelled images, and which gallery images are correct for a query."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Labelled images that are read one by one.

    Attributes:
        names: n names for display: file paths relative to the root, or generated names.
        labels: int64 (n,), indices into `Dataset.classes`; -1 if an image has no label (landmark galleries).
        load: returns the encoded image of an index; thread-safe; raises ImageError with the name.
        digest: changes whenever the images, their order or labels change; used as a cache key.

    """

    names: tuple[str, ...]
    labels: np.ndarray
    load: Callable[[int], bytes]
    digest: str

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> Split:
        """Return the images at `rows` (integers, any order) without reading them."""
        rows = np.asarray(rows, np.int64)
        load = self.load
        return Split(
            tuple(self.names[row] for row in rows),
            self.labels[rows],
            lambda index: load(int(rows[index])),
            digest_of(self.digest, rows.tobytes()),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """Ground truth of a retrieval, in the form of `retrieval.retrieve`.

    Attributes:
        queries: int64 (m,), rows of `Dataset.test`; queries without matches are excluded.
        matches: for each query, the correct rows of the gallery.
        ignored: for each query, the rows that do not count: junk, or the query itself.
        trapezoid: use the average precision of the revisited Oxford and Paris protocol.

    """

    queries: np.ndarray
    matches: tuple[np.ndarray, ...]
    ignored: tuple[np.ndarray, ...]
    trapezoid: bool = False


def others_of_class(labels: np.ndarray) -> Relevance:
    """Return the relevance in which each image must find the others of its class; single images are not queries."""
    rows = np.arange(len(labels))
    members = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    asking = np.array([row for row in rows if len(members[labels[row]]) > 1], np.int64)
    matches = tuple(members[labels[row]][members[labels[row]] != row] for row in asking)
    return Relevance(asking, matches, tuple(asking[:, None]))


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images, labels and relevance under one name.

    Attributes:
        name: name in reports.
        classes: names of the labels.
        test: images to classify, or the queries of a retrieval.
        train: training images or the gallery. None if the test images search each other; `relevance` then ignores the
            query itself.
        relevance: ground truth by protocol ("easy", "medium", "hard" …); empty if labels define it.
        notes: sentences that reports must repeat, such as images shared by train and test.

    """

    name: str
    classes: tuple[str, ...]
    test: Split
    train: Split | None = None
    relevance: Mapping[str, Relevance] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of both splits."""
        return digest_of(self.test.digest, self.train.digest if self.train else "")

    def with_notes(self, *notes: str) -> Dataset:
        """Return a copy with `notes` added."""
        return replace(self, notes=self.notes + notes)


def digest_of(*parts: str | bytes) -> str:
    """Return the sha256 of `parts` with their lengths, so that boundaries between parts matter."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
