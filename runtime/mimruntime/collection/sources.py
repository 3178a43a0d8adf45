"""Open the storage of images; for http:// and https://, `Access` is checked at every redirect and address."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterator
from typing import Any

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
        system, maker = _file_system(), _client_maker(access)
    except ImportError as error:
        raise OSError(
            f"http:// and https:// need another package: {error}; run: pip install 'aiohttp>=3.12'"
        ) from error
    return system(get_client=maker, headers={"Accept-Encoding": "identity"})


@functools.cache
def _file_system() -> Any:
    """Return fsspec's class for http, with an OSError for whatever goes wrong between here and the server."""
    from aiohttp import ClientError  # noqa: PLC0415 - optional
    from fsspec.implementations.http import HTTPFileSystem  # noqa: PLC0415

    @contextlib.contextmanager
    def as_os_errors() -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise OSError(str(error) or type(error).__name__) from error

    class FileSystem(HTTPFileSystem):  # type: ignore[misc]
        def open(self, *given: Any, **options: Any) -> Any:
            with as_os_errors():
                file = super().open(*given, **options)
            file.read = as_os_errors()(file.read)
            return file

        async def _find(self, *given: Any, **options: Any) -> Any:
            with as_os_errors():
                return await super()._find(*given, **options)

    return FileSystem


@functools.cache
def _client_maker(access: Access) -> Any:
    """Return the function with which fsspec opens its session; cached by access, so that fsspec reuses the session."""
    import yarl  # noqa: PLC0415 - optional
    from aiohttp import AddrInfoType, ClientSession, TCPConnector, ThreadedResolver, TraceConfig  # noqa: PLC0415

    of_named_hosts: set[tuple[str, int]] = set()

    class CheckedResolver(ThreadedResolver):
        """Resolve only to public addresses, unless the user named the host; connections go to these addresses."""

        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
            found = await super().resolve(host, port, family)
            if _names(access, host, port):
                of_named_hosts.update((entry["host"], port) for entry in found)
            elif not all(is_public(entry["host"]) for entry in found):
                raise _not_public(host)
            return found

    def open_socket(to: AddrInfoType) -> socket.socket:
        """Check the address itself, since aiohttp does not resolve a host that is one."""
        family, kind, protocol, _, (address, port, *_) = to
        host = f"[{address}]" if family == socket.AF_INET6 else str(address)
        if (
            (address, port) not in of_named_hosts
            and not is_public(str(address))
            and not _names(access, host, int(port))
        ):
            raise _not_public(host)
        return socket.socket(family, kind, protocol)

    async def check_redirect(_session: Any, _context: Any, params: Any) -> None:
        headers = params.response.headers
        place = headers.get("Location") or headers.get("URI")  # as aiohttp does
        if not place:
            raise RefusedError("redirects to nowhere; expected a header Location")
        try:
            target = str(params.url.join(yarl.URL(place)))
            access.check_url(target)
        except RefusedError as error:
            raise RefusedError(f"redirects to {target}, which {error}") from error
        except ValueError as error:
            raise RefusedError(f"redirects to {place}, which is no URL") from error

    async def make(**options: Any) -> Any:
        trace = TraceConfig()
        trace.on_request_redirect.append(check_redirect)
        connector = TCPConnector(resolver=CheckedResolver(), socket_factory=open_socket)
        # Do not decompress: a few compressed bytes could expand to any size.
        return ClientSession(connector=connector, trace_configs=[trace], auto_decompress=False, **options)

    return make


def _not_public(host: str) -> RefusedError:
    return RefusedError(f"is on a host whose address is not public; to read it: --allow-remote https://{host}")


def _names(access: Access, host: str, port: int) -> bool:
    """Return whether the user named a host and port in any form of a URL."""
    usual = {80: "http", 443: "https"}
    written = [f"{scheme}://{host}:{port}" for scheme in usual.values()]
    return any(map(access.names_host, [*written, f"{usual[port]}://{host}"] if port in usual else written))
