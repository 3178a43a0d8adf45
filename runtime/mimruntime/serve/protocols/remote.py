"""Fetch images by URL: only from hosts that are allowed, and only from public addresses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urljoin, urlsplit

import h11

from mimruntime.addresses import is_public
from mimruntime.serve.admission.buffer import Buffer
from mimruntime.serve.problems import Problem
from mimruntime.serve.settings import parse_remote_host

_REDIRECTS = 3
_TOTAL_S = 10.0
"""Time limit of one image: its wait, DNS look-ups, connections, redirects and transfer."""
_CHUNK = 65536
_AT_ONCE = 8
_NO_URLS = (
    "is a URL, and this service fetches none; send the image itself: 'data:image/jpeg;base64,/9j/4AAQ…'"
    " (its operator allows hosts with --remote-host)"
)
_URL_SAFE = "%/:?#[]@!$&'()*+,;=~"


class Fetcher:
    """Turn the data URIs and URLs of clients into sources; only https URLs of allowed hosts are fetched.

    All but the DNS look-up runs on the event loop, so that the deadline can cancel it. A look-up cannot be cancelled; it
    runs in threads that nothing else uses.
    """

    def __init__(self, hosts: Iterable[str], max_bytes: int, buffer: Buffer) -> None:
        self._hosts = frozenset(parse_remote_host(host) for host in hosts)
        self._max_bytes = max_bytes
        self._buffer = buffer
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._lookups = ThreadPoolExecutor(_AT_ONCE, "mimexport-lookup")

    @contextlib.asynccontextmanager
    async def resolve(
        self, locations: Sequence[str], *, by_item: bool = False
    ) -> AsyncIterator[list[bytes | str | Problem]]:
        """Yield data URIs unchanged, and the fetched bytes of URLs; these count as buffered until the block ends.

        Args:
            locations: data URIs and URLs of a request's images.
            by_item: yield the 400 of an image in its place.

        Raises:
            Problem: 400 with the position of a URL that is not allowed or does not answer; 413 if the images together are too
                large; 429 if too many bytes are in memory.

        """
        found: list[bytes | str | Problem] = list(locations)
        remote = [index for index, location in enumerate(locations) if not location.startswith("data:")]
        if not by_item:
            for index in remote:
                self._check_url(locations[index], index)
        room = _Room(self._max_bytes, self._buffer)
        fetch = self._fetch_item if by_item else self._fetch
        tasks = [asyncio.create_task(fetch(locations[index], index, room)) for index in remote]
        try:
            for index, body in zip(remote, await asyncio.gather(*tasks), strict=True):
                found[index] = body
            yield found
        finally:
            for task in tasks:
                task.cancel()
            room.give_back()

    async def _fetch_item(self, url: str, index: int, room: _Room) -> bytes | Problem:
        """Return the problem of one image; raise those that concern all images together."""
        try:
            return await self._fetch(url, index, room)
        except Problem as problem:
            if problem.status_code != 400:
                raise
            return problem

    async def _fetch(self, url: str, index: int, room: _Room) -> bytes:
        try:
            async with asyncio.timeout(_TOTAL_S), self._slots:
                return await self._follow(url, index, room)
        except TimeoutError as error:
            raise _refused(index, f"not whole within {_TOTAL_S:g} s") from error

    async def _follow(self, url: str, index: int, room: _Room) -> bytes:
        for _ in range(_REDIRECTS + 1):
            host, port = self._check_url(url, index)
            address = await self._public_address(host, port, index)
            try:
                status, location, body = await _get(url, host, port, address, room, index)
            except (OSError, h11.ProtocolError, ValueError) as error:
                raise _refused(index, f"{host} cannot be read ({type(error).__name__})") from error
            if status == 200:
                return body
            if status not in {301, 302, 303, 307, 308}:
                raise _refused(index, f"{host} answered {status}")
            url = urljoin(url, location)
        raise _refused(index, f"more than {_REDIRECTS} redirects")

    def _check_url(self, url: str, index: int) -> tuple[str, int]:
        """Return host and port of a URL that is https and allowed."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or 443
        except ValueError as error:
            raise _refused(index, "is no URL") from error
        if not self._hosts:
            raise _refused(index, _NO_URLS)
        if parts.scheme != "https" or parts.username is not None or (host, port) not in self._hosts:
            raise _refused(index, "only https URLs of the hosts the operator allows are fetched")
        return host, port

    async def _public_address(self, host: str, port: int, index: int) -> str:
        """Return an address of `host`; all its addresses must be public."""
        loop = asyncio.get_running_loop()
        try:
            entries = await loop.run_in_executor(self._lookups, _look_up, host, port)
        except (OSError, UnicodeError) as error:
            raise _refused(index, f"{host} has no address") from error
        found = [str(entry[4][0]) for entry in entries]
        if not found:
            raise _refused(index, f"{host} has no address")
        if not all(is_public(address) for address in found):
            raise _refused(index, f"{host} has an address that is not public")
        return found[0]


class _Room:
    """Bytes that the images of one request use, of its own and of the service's limit."""

    def __init__(self, limit: int, buffer: Buffer) -> None:
        self._limit = limit
        self._taken = 0
        self._buffer = buffer

    def take(self, count: int, index: int) -> None:
        """Use `count` bytes for image `index`."""
        self._taken += count
        self._buffer.take(count)
        if self._taken > self._limit:
            reason = f"image {index}: the images of the request are over {self._limit:,} bytes"
            raise Problem(413, "image_too_large", reason, param=f"input[{index}]")

    def give_back(self) -> None:
        """End the use of all bytes."""
        self._buffer.give(self._taken)


def _look_up(host: str, port: int) -> list[tuple[object, object, object, object, tuple[object, ...]]]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


async def _connect(host: str, port: int, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the checked address, since a second look-up could return another."""
    return await asyncio.open_connection(address, port, ssl=ssl.create_default_context(), server_hostname=host)


async def _get(url: str, host: str, port: int, address: str, room: _Room, index: int) -> tuple[int, str, bytes]:
    """Return the status, the Location header, and the body if the status is 200."""
    reader, writer = await _connect(host, port, address)
    try:
        connection = h11.Connection(h11.CLIENT)
        writer.write(_request(connection, url, host, port))
        status, location, body = 0, "", bytearray()
        async for event in _events(connection, reader):
            if isinstance(event, h11.Response):
                status = event.status_code
                location = dict(event.headers).get(b"location", b"").decode("latin-1")
                if status != 200:
                    break
            elif isinstance(event, h11.Data):
                room.take(len(event.data), index)
                body += event.data
        return status, location, bytes(body)
    finally:
        writer.transport.abort()


def _request(connection: h11.Connection, url: str, host: str, port: int) -> bytes:
    parts = urlsplit(url)
    target = quote(f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}", safe=_URL_SAFE)
    name = f"[{host}]" if ":" in host else host
    headers = {
        "Host": name if port == 443 else f"{name}:{port}",
        "Accept-Encoding": "identity",
        "User-Agent": "mimexport",
        "Connection": "close",
    }
    request = connection.send(h11.Request(method="GET", target=target, headers=list(headers.items())))
    return (request or b"") + (connection.send(h11.EndOfMessage()) or b"")


async def _events(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[h11.Event]:
    """Yield the server's events until its answer is complete."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response | h11.Data | h11.InformationalResponse):
            yield event
        else:
            return


def _refused(index: int, reason: str) -> Problem:
    return Problem(400, "image_url", f"image {index}: {reason}", param=f"input[{index}]")
