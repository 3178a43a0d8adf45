"""Open the storage of images; for http:// and https://, `Access` is checked at every redirect and address."""

from __future__ import annotations

import functools
from typing import Any
from urllib.parse import urljoin

from mimruntime.addresses import is_public
from mimruntime.collection.access import Access, RefusedError
from mimruntime.collection.urls import arrow, locate


def open_source(url: str, access: Access) -> tuple[Any, str]:
    """Return a pyarrow file system for reading `url`, and the path in it; see `urls.locate`."""
    if not _is_http(url):
        return locate(url)
    fs = arrow().fs
    return fs.PyFileSystem(fs.FSSpecHandler(_http(access))), url


def open_stream(url: str, access: Access) -> Any:
    """Open an object to read it once from the start, without decompression.

    Raises:
        MissingExtraError: fsspec or pyarrow is not installed.
        OSError: the object cannot be reached or is missing.

    """
    if _is_http(url):
        # One streamed request: an answer to a range request could have any size. Do not ask for the size.
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
    """Return the function with which fsspec opens its session; cached by access, so that fsspec reuses the session."""
    import aiohttp  # noqa: PLC0415 - optional

    class CheckedResolver(aiohttp.ThreadedResolver):
        """Resolve only to public addresses, unless the user named the host; connections go to these addresses."""

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
        # Do not decompress: a few compressed bytes could expand to any size.
        return aiohttp.ClientSession(connector=connector, trace_configs=[trace], auto_decompress=False, **options)

    return make


def _places(host: str, port: int) -> list[tuple[str, str]]:
    """Return the scheme and authority of every form of a host and port in a URL."""
    usual = {80: "http", 443: "https"}
    written = [(scheme, f"{host}:{port}") for scheme in usual.values()]
    return [*written, (usual[port], host)] if port in usual else written
