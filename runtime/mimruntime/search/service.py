"""An encoder that uses a running `mimexport serve`."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from mimruntime.decode import Source, describe
from mimruntime.errors import EngineError, ImageError, OptionError
from mimruntime.image_paths import open_regular
from mimruntime.results import Description, Result

_AT_ONCE = 8
"""Number of requests in flight, from which the service makes batches."""
_TIMEOUT_S = 60
_REDIRECTS = range(300, 400)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes a redirect an error: urllib would send the key on to any host that it names."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


class ServiceEncoder:
    """Embed by `POST /v1/embeddings/image`, with the key in MIMEXPORT_API_KEY if it is set.

    Args:
        url: "http://HOST:PORT".

    Raises:
        EngineError: nothing answers there, or another program does.
        OptionError: the service has several artifacts.

    """

    has_selection = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "mimruntime-query")
        try:
            (about,) = self._get("/info")["models"]
            self._about = msgspec.convert(about, Description)
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise EngineError(
                f"{url} does not answer as `mimexport serve` does; start one, or name its address"
            ) from error
        except ValueError as error:
            raise OptionError(f"{url} serves several artifacts; expected one, start a service for it alone") from error

    def describe(self) -> Description:
        """Return the service's description of what it runs."""
        return self._about

    def stream(self, sources: Iterable[Source]) -> Iterator[Result]:
        """Yield a result per source, in order; see `Embedder.stream`.

        Raises:
            EngineError: the service does not answer, or refuses a request for a reason other than its image.

        """
        waiting: deque[tuple[Source, Future[np.ndarray]]] = deque()
        for source in sources:
            waiting.append((source, self._pool.submit(self._embed, source)))
            if len(waiting) > _AT_ONCE:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())

    def select(self, images: Iterable[Source]) -> np.ndarray:  # noqa: ARG002 - as `Embedder.select`
        """Raise OptionError: a service returns only vectors here."""
        raise OptionError(f"{self.url} returns no selection here; name the artifact's folder instead")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _embed(self, source: Source) -> np.ndarray:
        body = _encoded(source)
        answer = self._send("/v1/embeddings/image", body, {"X-Embedding-Space": self._about.space})
        try:
            vector = np.asarray(answer["data"][0]["embedding"], np.float32)
        except (LookupError, TypeError, ValueError):
            vector = np.empty(0, np.float32)
        if vector.shape != (self._about.dim,) or not np.isfinite(vector).all():
            raise EngineError(
                f"{self.url} answered without a vector of {self._about.dim} numbers; is `mimexport serve` running there?"
            )
        return vector

    def _get(self, path: str) -> Any:
        return self._send(path, None, {})

    def _send(self, path: str, body: bytes | None, headers: dict[str, str]) -> Any:
        if key := os.environ.get("MIMEXPORT_API_KEY"):
            headers = {**headers, "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310 - http or https, as the user named it
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                reason = _reason(error)
            kind = ImageError if error.code in {400, 413, 415} else EngineError
            raise kind(f"{self.url}{path} answered {error.code}: {reason}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EngineError(f"{self.url} cannot be reached ({error}); is `mimexport serve` running there?") from error


def _encoded(source: Source) -> bytes:
    """Return the bytes of an encoded file."""
    if isinstance(source, str | Path):
        try:
            with open_regular(source) as stream:
                return stream.read()
        except OSError as error:
            raise ImageError(f"cannot be read ({error.strerror})") from error
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    raise ImageError(f"{describe(source)}: a service takes paths and encoded bytes")


def _result(source: Source, future: Future[np.ndarray]) -> Result:
    try:
        return Result(source, future.result(), None)
    except ImageError as error:
        return Result(source, None, f"{describe(source)}: {error}")


def _reason(error: urllib.error.HTTPError) -> str:
    if error.code in _REDIRECTS:
        return "it redirects, which is not followed; name the address of the service itself"
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return error.reason
