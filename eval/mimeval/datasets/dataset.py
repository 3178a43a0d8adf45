"""What every data set is to the evaluation: images to search in, test images, and what is right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Labelled images that are read one by one.

    Attributes:
        names: n names, for people: of files below the root, or made up.
        labels: int64 (n,), rows of `Dataset.classes`; -1 where an image has no label (galleries of landmarks).
        load: index -> the encoded image; safe to call from several threads; raises ImageError with the name.
        digest: changes whenever the images, their order or labels do: features may be cached under it.

    """

    names: tuple[str, ...]
    labels: np.ndarray
    load: Callable[[int], bytes]
    digest: str

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: np.ndarray) -> Split:
        """Return the images at `rows` (int, any order), without reading one."""
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
    """What queries ought to find, in the form `retrieval.retrieve` takes.

    Attributes:
        queries: int64 (m,), rows of `Dataset.test`; those with nothing to find are not among them.
        matches: for each query the rows of the gallery that are right.
        ignored: for each query the rows that do not count: junk, or the query itself.
        trapezoid: average precision as the revisited Oxford and Paris protocol takes it.

    """

    queries: np.ndarray
    matches: tuple[np.ndarray, ...]
    ignored: tuple[np.ndarray, ...]
    trapezoid: bool = False


def others_of_class(labels: np.ndarray) -> Relevance:
    """Return that every image ought to find the others of its class, and not itself; one that is alone asks nothing."""
    rows = np.arange(len(labels))
    members = {label: np.flatnonzero(labels == label) for label in np.unique(labels)}
    asking = np.array([row for row in rows if len(members[labels[row]]) > 1], np.int64)
    matches = tuple(members[labels[row]][members[labels[row]] != row] for row in asking)
    return Relevance(asking, matches, tuple(asking[:, None]))


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images, labels and relevance under one name.

    Attributes:
        name: as reports give it.
        classes: names of the labels.
        test: images that are classified, or the queries of a retrieval.
        train: images to learn from or to search in. None where the test images search each other (`relevance` then
            leaves the query itself out).
        relevance: by protocol ("easy", "medium", "hard" …); empty where labels alone decide.
        notes: sentences a report must repeat, such as images that train and test share.

    """

    name: str
    classes: tuple[str, ...]
    test: Split
    train: Split | None = None
    relevance: Mapping[str, Relevance] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of both splits."""
        return digest_of(self.test.digest, self.train.digest if self.train else "")

    def with_notes(self, *notes: str) -> Dataset:
        """Return the same with `notes` added."""
        return replace(self, notes=self.notes + notes)


def digest_of(*parts: str | bytes) -> str:
    """Return the sha256 of `parts`, in which borders between them count."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
