"""The tree of errors for users.

MimError                    one line: what, what came, what was expected, what to do
├── UnknownNameError        an unknown name; the message lists the nearest known names
├── OptionError             an option that does not fit the model or the artifact
├── MissingExtraError       an optional package is not installed; the message has the pip command
├── ArtifactError           an artifact folder that is missing, damaged, foreign or newer than this program
│   └── SignatureError      an artifact or engine without a signature by the required key
├── SpaceError              vectors of two embedding spaces would be mixed
│   └── PrecisionError      vectors of one space but of two precisions would be mixed
├── ImageError              an input that cannot be decoded as an image
│   ├── ImageFormatError    a format that is unknown or not allowed
│   └── ImageSizeError      more pixels, work or memory than allowed
├── EngineError             an engine or provider that is missing or cannot run this
├── ParityError             embeddings that differ from the reference, or from run to run
├── VectorsError            a file of vectors that is missing, damaged or foreign
└── OutputError             a result that cannot be written
"""

from __future__ import annotations

import contextlib
import copyreg
import difflib
from collections.abc import Iterable, Iterator
from typing import Any


class MimError(Exception):
    """Base class of all errors of this project; the message is one line that tells the user what to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default pickling calls `__init__` with the finished message, which fails for subclasses with other arguments,
        # and an error that cannot be unpickled breaks a worker pool.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


_MOST_COMPARED = 100
"""Characters of a name to compare with known names; the cost is quadratic."""


class UnknownNameError(MimError):
    """An unknown name.

    Args:
        kind: kind of the name ("aggregator", "engine" …).
        name: the unknown name.
        known: the known names.

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
    """An optional package is not installed.

    Args:
        purpose: what needs the package ("the engine 'onnxruntime'").
        extra: pip extra that contains the package.

    """

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional package; run: pip install 'mimexport[{extra}]'")


class ArtifactError(MimError):
    """An artifact folder that is missing, damaged, foreign or newer than this program."""


class SignatureError(ArtifactError):
    """An artifact, or an engine in it, without a signature by the required key."""


class SpaceError(MimError):
    """Vectors of two embedding spaces would be mixed."""


class PrecisionError(SpaceError):
    """Vectors of one embedding space, computed in another precision than was asked for."""


class ImageError(MimError):
    """An input that is not an image, is damaged or too large, or has an unsupported format."""


class ImageFormatError(ImageError):
    """An image whose format is unknown or not allowed."""


class ImageSizeError(ImageError):
    """An image with more pixels, work or memory than allowed; it is rejected by its header."""


class EngineError(MimError):
    """An engine or provider that is missing or cannot run this."""


class ParityError(MimError):
    """Embeddings that differ from the reference, between batches or between runs by more than the tolerance."""


class VectorsError(MimError):
    """A file of vectors that is missing, damaged or not written by this program."""


class OutputError(MimError):
    """A result that cannot be written to its destination."""


@contextlib.contextmanager
def needs(extra: str, purpose: str) -> Iterator[None]:
    """Convert a ModuleNotFoundError in the block to MissingExtraError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(purpose, extra) from error
