"""Find images that are in both train and test, by content; they inflate the accuracy."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mimeval.datasets.dataset import Dataset, Split
from mimeval.datasets.fetch import Progress
from mimruntime.cpus import available_cpus
from mimruntime.errors import MimError, OutputError
from mimruntime.writing import write_file

_CHUNK = 1024


def note_shared(dataset: Dataset, cache: Path, progress: Progress = lambda here, total: None) -> Dataset:
    """Return `dataset` with a note about test images whose bytes also occur in train.

    All images are read once; the result is stored in `cache` by the digest of the data set. Unreadable images are skipped;
    the evaluation reports them.

    Raises:
        OutputError: the cache is not writable.

    """
    if dataset.train is None:
        return dataset
    file = cache / "shared" / f"{dataset.digest}.txt"
    try:
        note = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # missing or damaged
        note = _compare(dataset.test, dataset.train, progress)
        _keep(note, file)
    return dataset.with_notes(note) if note else dataset


def _compare(test: Split, train: Split, progress: Progress) -> str:
    tested: dict[bytes, list[str]] = defaultdict(list)
    total = len(test) + len(train)
    for name, digest in _digests(test, lambda here: progress(here, total)):
        tested[digest].append(name)
    found = {
        digest: name
        for name, digest in _digests(train, lambda here: progress(len(test) + here, total))
        if digest in tested
    }
    if not found:
        return ""
    digest, name = next(iter(found.items()))
    return (
        f"{sum(len(tested[shared]) for shared in found)} of {len(test)} test images are training images too, such as"
        f" {tested[digest][0]} = {name} (sha256 {digest.hex()[:12]}): they inflate the accuracy"
    )


def _digests(split: Split, progress: Callable[[int], None]) -> Iterator[tuple[str, bytes]]:
    def digest(row: int) -> bytes | None:
        try:
            return hashlib.sha256(split.load(row)).digest()
        except (OSError, MimError):
            return None

    with ThreadPoolExecutor(available_cpus()) as pool:
        for start in range(0, len(split), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(split)))
            for row, found in zip(rows, pool.map(digest, rows), strict=True):
                if found is not None:
                    yield split.names[row], found
            progress(rows.stop)


def _keep(note: str, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from error
    write_file(file, note.encode())
