"""Every error a user can meet, as one tree.

MimError                    one line: what, what came, what was expected, what to do
├── UnknownNameError        a name that is in no table; carries the nearest known ones
├── OptionError             an option that does not fit the model or the artifact
├── MissingExtraError       an optional dependency is not installed; carries the pip line
├── ArtifactError           an artifact folder that is missing, broken, foreign or newer than this program
│   └── SignatureError      one that the key which is asked for did not sign
├── SpaceError              vectors of two embedding spaces would meet
│   └── PrecisionError      vectors of one space that were computed in two precisions
├── ImageError              something that is not an image this program decodes
│   ├── ImageFormatError    of a format that is unknown or not let in
│   └── ImageSizeError      of more pixels, work or memory than is given to decoding
├── EngineError             an engine or provider that cannot run what was asked
├── ParityError             embeddings that are not those of the reference, or change from run to run
├── VectorsError            a file of vectors that is missing, broken or of another program
└── OutputError             a result that cannot be written
"""

from __future__ import annotations

import contextlib
import copyreg
import difflib
from collections.abc import Iterable, Iterator
from typing import Any


class MimError(Exception):
    """Base of all errors this project raises on purpose; its text is one line for a person to act on."""

    def __reduce__(self) -> tuple[Any, ...]:
        # An error that cannot be unpickled breaks the pool of workers it comes from: `__init__` makes a text of what it
        # is given, and pickle would give it that text.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


_MOST_COMPARED = 100
"""Characters of a name: what comparing costs grows with their square."""


class UnknownNameError(MimError):
    """A name that is in no table.

    Args:
        kind: what the name stands for ("aggregator", "engine" …).
        name: what came.
        known: the names that exist.

    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        if len(name) > _MOST_COMPARED:
            name = name[:_MOST_COMPARED] + "…"
        nearest = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else f"known: {', '.join(names[:20])}"
        super().__init__(f"unknown {kind} '{name}'; {hint}")


class OptionError(MimError):
    """An option that does not fit the model, the aggregator or the artifact."""


class MissingExtraError(MimError, ImportError):
    """An optional dependency is not installed.

    Args:
        purpose: what needs it ("the engine 'onnxruntime'").
        extra: the extra of this distribution that brings it.

    """

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional package; run: pip install 'mimexport[{extra}]'")


class ArtifactError(MimError):
    """An artifact folder that is missing, broken, foreign or newer than this program."""


class SignatureError(ArtifactError):
    """An artifact, or an engine in it, that the key which is asked for did not sign."""


class SpaceError(MimError):
    """Vectors of two embedding spaces would be mixed."""


class PrecisionError(SpaceError):
    """Vectors of one embedding space, computed in another precision than was asked for."""


class ImageError(MimError):
    """Something that is not an image, is damaged, too large, or of a format that is not decoded."""


class ImageFormatError(ImageError):
    """Something whose format is unknown or not let in."""


class ImageSizeError(ImageError):
    """An image of more pixels, work or memory than is given to decoding, refused by its header."""


class EngineError(MimError):
    """An engine or provider that is not there or cannot run what was asked."""


class ParityError(MimError):
    """Embeddings that differ from the reference, from batch to batch or from run to run by more than is tolerated."""


class VectorsError(MimError):
    """A file of vectors that is missing, broken or not written by this program."""


class OutputError(MimError):
    """A result that cannot be written where it was asked for."""


@contextlib.contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Say of a library that is missing which extra brings it; see `MissingExtraError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(purpose, extra) from error
