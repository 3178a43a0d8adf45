"""The state of a page: a gallery, its vectors by every artifact, and dropped queries; embedded in the background."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from mimruntime import heatmaps
from mimruntime.browse.pictures import LARGE, Pictures
from mimruntime.browse.settings import BrowseSettings
from mimruntime.embedder import Embedder
from mimruntime.errors import ImageError, MimError, SpaceError
from mimruntime.preprocess import crop_box
from mimruntime.search.cache import cache_folder, image_key
from mimruntime.search.collection import Collection, open_collection
from mimruntime.search.encoders import Encoder, open_encoder
from mimruntime.search.gallery import Gallery, open_gallery
from mimruntime.search.index import Neighbours
from mimruntime.search.stored import read_stored
from mimruntime.vectors import Vectors

_LOG = logging.getLogger("mimexport")
_TURN = 64
"""Images that one artifact embeds before the next artifact continues."""
_MOST_QUERIES = 16
_MOST_HEATMAPS = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """An image that was dropped on the page.

    Attributes:
        key: digest of its content.
        content: the encoded file.
        picture: JPEG for the page.
        vectors: its vector by artifact.

    """

    key: str
    content: bytes
    picture: bytes
    vectors: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Heatmap:
    """The patch weights of an artifact on an image.

    Attributes:
        box: the area that the patches cover: left, top, right, bottom, as fractions of the image's edges.
        colours: RGBA uint8 (gh, gw, 4).

    """

    box: tuple[float, float, float, float]
    colours: np.ndarray


class Session:
    """The data of all routes; a context manager that starts and ends the background embedding.

    Args:
        names: names of the artifacts on the page.
        gallery: the images.
        collections: one per artifact.
        pictures: the pictures of the images.

    Attributes:
        version: a digest that changes with the list of images, and with the size or time of change of one.
        numbers: image numbers by name.
        classes: name, first image and number of images of each class.
        problem: the error that ended the embedding, or "".
        right: for each artifact, how many images their neighbours classify correctly, and of how many.

    """

    def __init__(
        self, names: Sequence[str], gallery: Gallery, collections: Sequence[Collection], pictures: Pictures
    ) -> None:
        self.names, self.gallery, self.collections, self.pictures = tuple(names), gallery, tuple(collections), pictures
        self.version = _version(gallery)
        self.numbers = {name: number for number, name in enumerate(gallery.names)}
        self.classes = _classes(gallery)
        self.problem = ""
        self.right: list[tuple[int, int]] = [(0, 0)] * len(self.collections)
        self._queries: OrderedDict[str, Query] = OrderedDict()
        self._heatmaps: OrderedDict[tuple[int, int | str], Heatmap] = OrderedDict()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._filler = threading.Thread(target=self._fill, name="mimruntime-browse", daemon=True)

    def __enter__(self) -> Self:
        self._filler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._filler.join()
        self.pictures.close()

    @property
    def is_full(self) -> bool:
        """Whether all images are embedded and classified."""
        return not self._filler.is_alive()

    def add_query(self, content: bytes) -> Query:
        """Embed an encoded image with every artifact, and store it.

        Raises:
            ImageError: it cannot be decoded.
            EngineError: a run failed.

        """
        key = hashlib.sha256(content).hexdigest()[:16]
        picture = self.pictures.render(content, LARGE)
        query = Query(key, content, picture, tuple(each.embed(content) for each in self.collections))
        with self._lock:
            self._queries[key] = query
            if len(self._queries) > _MOST_QUERIES:
                self._queries.popitem(last=False)
        return query

    def query(self, key: str) -> Query:
        """Return a query that was dropped earlier.

        Raises:
            ImageError: the query is not stored.

        """
        with self._lock:
            if key not in self._queries:
                raise ImageError("this image was dropped in another session; drop it again")
            self._queries.move_to_end(key)
            return self._queries[key]

    def neighbours(self, of: int | Query, count: int) -> list[Neighbours | None]:
        """Return the nearest images by each artifact; None if the image has no vector, or none yet."""
        if isinstance(of, Query):
            return [each.nearest(vector, count) for each, vector in zip(self.collections, of.vectors, strict=True)]
        return [each.neighbours(of, count) if of in each.index else None for each in self.collections]

    def heatmap(self, artifact: int, of: int | Query) -> Heatmap | None:
        """Return the heatmap of an artifact; None if its graph has no output for it.

        Raises:
            ImageError: the image cannot be decoded.

        """
        encoder = self.collections[artifact].encoder
        if not isinstance(encoder, Embedder) or not encoder.has_selection:
            return None
        key = artifact, of.key if isinstance(of, Query) else of
        with self._lock:
            known = self._heatmaps.get(key)
        if known is None:
            with contextlib.nullcontext() if isinstance(of, Query) else self.gallery.named(of):
                known = self._make_heatmap(encoder, of.content if isinstance(of, Query) else self.gallery.paths[of])
            with self._lock:
                self._heatmaps[key] = known
                if len(self._heatmaps) > _MOST_HEATMAPS:
                    self._heatmaps.popitem(last=False)
        return known

    def _make_heatmap(self, encoder: Embedder, source: str | bytes) -> Heatmap:
        image = self.pictures.load(source)
        left, top, right, bottom = crop_box(*image.size, encoder.artifact.manifest.preprocess)
        box = (left / image.width, top / image.height, right / image.width, bottom / image.height)
        (weights,), kept = encoder.select([image]), encoder.kept([image])
        return Heatmap(box, heatmaps.overlay(weights, None if kept is None else kept[0]))

    def _fill(self) -> None:
        """Embed with the artifacts in turn, so that they can be compared early; classify each time the number has doubled."""
        try:
            working = {number: each.fill() for number, each in enumerate(self.collections)}
            judged = [0] * len(self.collections)
            while working and not self._stop.is_set():
                for number in list(working):
                    if self._turn(working[number]):
                        del working[number]
                    known = len(self.collections[number].index)
                    if number not in working or known >= max(2 * judged[number], 1000):
                        judged[number] = known
                        self.right[number] = self.collections[number].judge()
            for left in working.values():
                left.close()
        except MimError as error:
            self.problem = str(error)
            _LOG.error("%s", error)
        except Exception as error:  # else the page would say that all is done
            self.problem = f"embedding ended with {type(error).__name__}; see the log, and start again"
            _LOG.exception("embedding ended")

    def _turn(self, images: Iterator[int]) -> bool:
        """Embed some images; return whether all are done."""
        for _ in range(_TURN):
            if self._stop.is_set():
                return False
            if next(images, None) is None:
                return True
        return False


@contextlib.contextmanager
def open_session(settings: BrowseSettings) -> Iterator[Session]:
    """Open a session for `settings`; its engines are open while the block runs.

    Raises:
        ImageError: there are no images.
        SpaceError: vectors have a space that no artifact embeds into.
        MimError: an artifact cannot be opened.

    """
    gallery = open_gallery(settings.images)
    with contextlib.ExitStack() as stack:
        encoders = [stack.enter_context(open_encoder(name, **settings.engine)) for name in settings.artifacts]
        collections = _open_collections(settings, gallery, encoders)
        places = [str(Path(root).absolute()) for root in settings.images]
        pictures = Pictures(gallery, cache_folder(settings.cache, "thumbnails", places) / "thumbnails.sqlite")
        yield stack.enter_context(Session(short_names(settings.artifacts), gallery, collections, pictures))


def _open_collections(settings: BrowseSettings, gallery: Gallery, encoders: Sequence[Encoder]) -> list[Collection]:
    stored = [read_stored(path) for path in settings.vectors]
    _check_spaces(settings, stored, encoders)
    roots, cache = settings.images, settings.cache
    return [
        open_collection(each, gallery, roots=roots, cache=cache, stored=_of_space(stored, each.describe().space))
        for each in encoders
    ]


def short_names(artifacts: Sequence[str]) -> list[str]:
    """Return the artifacts' names on the page: the last part of each path, numbered if two are the same."""
    last = [name.rstrip("/").rpartition("/")[2] or name for name in artifacts]
    return [f"{name} {number}" if last.count(name) > 1 else name for number, name in enumerate(last, 1)]


def _version(gallery: Gallery) -> str:
    keys = b"".join(image_key(path) or os.fsencode(path) for path in gallery.paths)
    return hashlib.sha256(keys).hexdigest()[:16]


def _classes(gallery: Gallery) -> list[tuple[str, int, int]]:
    names, first, counts = np.unique(np.array(gallery.labels, np.str_), return_index=True, return_counts=True)
    return list(zip(names.tolist(), first.tolist(), counts.tolist(), strict=True))


def _of_space(stored: Sequence[Vectors], space: str) -> Vectors | None:
    return next((one for one in stored if one.space.partition("/")[0] == space), None)


def _check_spaces(settings: BrowseSettings, stored: Sequence[Vectors], encoders: Sequence[Encoder]) -> None:
    spaces = {encoder.describe().space for encoder in encoders}
    for path, one in zip(settings.vectors, stored, strict=True):
        if one.space.partition("/")[0] not in spaces:
            raise SpaceError(
                f"{path} holds vectors of space {one.space} ({one.model}), the artifacts embed into {', '.join(sorted(spaces))};"
                " leave it out, or name the artifact it was made with"
            )
