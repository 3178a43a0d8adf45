"""Storage that images are read from; http:// and https:// are held to `Access` at every redirect and address."""

from __future__ import annotations

import functools
from typing import Any
from urllib.parse import urljoin

from mimruntime.addresses import is_public
from mimruntime.collection.access import Access, RefusedError
from mimruntime.collection.urls import arrow, locate


def open_source(url: str, access: Access) -> tuple[Any, str]:
    """Return the file system of pyarrow behind `url`, which is read from, and the path in it; see `urls.locate`."""
    if not _is_http(url):
        return locate(url)
    fs = arrow().fs
    return fs.PyFileSystem(fs.FSSpecHandler(_http(access))), url


def open_stream(url: str, access: Access) -> Any:
    """Open an object to read it once, from its beginning; nothing is decompressed.

    Raises:
        MissingExtraError: fsspec or pyarrow is not installed.
        OSError: it cannot be reached or is not there.

    """
    if _is_http(url):
        # One request, read as it comes: what answers a request for a part may be of any size. A size is not asked for.
        return _http(access).open(url, block_size=0, size=1)
    filesystem, path = locate(url)
    return filesystem.open_input_stream(path, compression=None)


def _is_http(url: str) -> bool:
    return url.partition("://")[0].lower() in {"http", "https"}


def _http(access: Access) -> Any:
    try:
        from fsspec.implementations.http import HTTPFileSystem  # noqa: PLC0415 - optional
    except ImportError as error:
        raise OSError(f"http:// and https:// need another package: {error}") from error
    return HTTPFileSystem(get_client=_client_maker(access), headers={"Accept-Encoding": "identity"})


@functools.cache
def _client_maker(access: Access) -> Any:
    """Return the function by which fsspec opens its session; the same one for the same access, or it opens many."""
    import aiohttp  # noqa: PLC0415 - optional

    class CheckedResolver(aiohttp.ThreadedResolver):
        """Gives addresses that are public, unless the user named the host; they are what is connected to."""

        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            found = await super().resolve(host, port, family)
            named = any(access.names_host(f"{scheme}://{place}") for scheme, place in _places(host, port))
            if not named and not all(is_public(entry["host"]) for entry in found):
                raise RefusedError(
                    f"is on a host whose address is not public; to read it: --allow-remote https://{host}"
                )
            return found

    async def check_redirect(_session: Any, _context: Any, params: Any) -> None:
        target = urljoin(str(params.url), params.response.headers.get("Location", ""))
        try:
            access.check_url(target)
        except RefusedError as error:
            raise RefusedError(f"redirects to {target}, which {error}") from error

    async def make(**options: Any) -> Any:
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(check_redirect)
        connector = aiohttp.TCPConnector(resolver=CheckedResolver())
        # What says that it is compressed is not: a few bytes of it could be of any size.
        return aiohttp.ClientSession(connector=connector, trace_configs=[trace], auto_decompress=False, **options)

    return make


def _places(host: str, port: int) -> list[tuple[str, str]]:
    """Return scheme and authority of every way to write a host and port in a URL."""
    usual = {80: "http", 443: "https"}
    written = [(scheme, f"{host}:{port}") for scheme in usual.values()]
    return [*written, (usual[port], host)] if port in usual else written
