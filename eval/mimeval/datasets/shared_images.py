"""Images that train and test share, found by content: a figure measured on them is a memory, not a skill."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mimeval.datasets.dataset import Dataset, Split
from mimruntime.cpus import available_cpus
from mimruntime.errors import OutputError

_CHUNK = 1024


def note_shared(dataset: Dataset, cache: Path) -> Dataset:
    """Return `dataset` with a note on the test images of which train holds the very bytes.

    Every image is read once; what was found is kept in `cache` under the digest of the data set.

    Raises:
        ImageError: an image cannot be read.
        OutputError: the cache cannot be written.

    """
    if dataset.train is None:
        return dataset
    file = cache / "shared" / f"{dataset.digest}.txt"
    if file.is_file():
        note = file.read_text(encoding="utf-8")
    else:
        note = _compare(dataset.test, dataset.train)
        _keep(note, file)
    return dataset.with_notes(note) if note else dataset


def _compare(test: Split, train: Split) -> str:
    tested: dict[bytes, list[str]] = defaultdict(list)
    for name, digest in _digests(test):
        tested[digest].append(name)
    found = {digest: name for name, digest in _digests(train) if digest in tested}
    if not found:
        return ""
    digest, name = next(iter(found.items()))
    return (
        f"{sum(len(tested[shared]) for shared in found)} of {len(test)} test images are training images too, such as"
        f" {tested[digest][0]} = {name} (sha256 {digest.hex()[:12]}): they flatter the accuracy"
    )


def _digests(split: Split) -> Iterator[tuple[str, bytes]]:
    with ThreadPoolExecutor(available_cpus()) as pool:
        for start in range(0, len(split), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(split)))
            found = pool.map(lambda row: hashlib.sha256(split.load(row)).digest(), rows)
            yield from zip(split.names[rows.start : rows.stop], found, strict=True)


def _keep(note: str, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(note, encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}") from error
