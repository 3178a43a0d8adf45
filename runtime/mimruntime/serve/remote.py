"""Images behind URLs: off unless hosts are allowed, and never an address that is not public."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin, urlsplit

from mimruntime.addresses import is_public
from mimruntime.serve.problems import Problem

_REDIRECTS = 3
_TOTAL_S = 10.0
_STEP_S = 3.0
_CHUNK = 65536
_AT_ONCE = 8


class Fetcher:
    """Turns what clients name into sources; only https URLs of allowed hosts are fetched."""

    def __init__(self, hosts: Collection[str], max_bytes: int) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._max_bytes = max_bytes
        self._pool = ThreadPoolExecutor(_AT_ONCE, "mimexport-fetch")

    async def resolve(self, locations: Sequence[str]) -> list[bytes | str]:
        """Return data URIs as they are and URLs as the bytes behind them.

        Raises:
            Problem: 400 with the position of a URL that is not allowed or does not answer; 413 where they are too large
                together.

        """
        for index, location in enumerate(locations):
            if not location.startswith("data:"):
                _check_url(location, self._hosts, index)
        loop, room = asyncio.get_running_loop(), _Room(self._max_bytes)
        return await asyncio.gather(
            *(
                _itself(location)
                if location.startswith("data:")
                else loop.run_in_executor(self._pool, self._fetch, location, index, room)
                for index, location in enumerate(locations)
            )
        )

    def _fetch(self, url: str, index: int, room: _Room) -> bytes:
        deadline = time.monotonic() + _TOTAL_S
        for _ in range(_REDIRECTS + 1):
            host, port = _check_url(url, self._hosts, index)
            connection = _PinnedConnection(host, port, _public_address(host, port, index))
            # Each read has its own time; a server that sends a byte now and then would have them all.
            alarm = threading.Timer(deadline - time.monotonic(), connection.cut_off)
            alarm.start()
            try:
                with _get(connection, url) as answer:
                    if answer.status in {301, 302, 303, 307, 308}:
                        url = urljoin(url, answer.getheader("Location", ""))
                        continue
                    if answer.status != 200:
                        raise _refused(index, f"{host} answered {answer.status}")
                    return _read(answer, room, deadline, index)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if time.monotonic() > deadline:
                    raise _too_slow(index) from error
                raise _refused(index, f"{host} cannot be read ({type(error).__name__})") from error
            finally:
                alarm.cancel()
                connection.close()
        raise _refused(index, f"more than {_REDIRECTS} redirects")


class _PinnedConnection(http.client.HTTPSConnection):
    """Connects to the address that was checked: a second look-up could give another."""

    def __init__(self, host: str, port: int, address: str) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=_STEP_S, context=self._tls)
        self._address = address
        self._open: socket.socket | None = None

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = self._open = self._tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock.do_handshake()

    def cut_off(self) -> None:
        """End whatever is waited for, from another thread."""
        if self._open is not None:  # `sock` is gone once the answer has begun and is the connection's last
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)


class _Room:
    """What the images of one request may still hold, in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._lock = threading.Lock()

    def take(self, count: int, index: int) -> None:
        """Use `count` bytes for image `index`."""
        with self._lock:
            self._left -= count
            if self._left < 0:
                reason = f"image {index}: the images of the request are over {self._limit:,} bytes"
                raise Problem(413, "image_too_large", reason, param=f"input[{index}]")


async def _itself(location: str) -> str:
    return location


def _check_url(url: str, hosts: Collection[str], index: int) -> tuple[str, int]:
    """Return host and port of a URL that is https and allowed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
    except ValueError as error:
        raise _refused(index, "is no URL") from error
    if not hosts:
        raise _refused(index, "URLs are not fetched here; send the image as a data URI")
    if parts.scheme != "https" or parts.username is not None or host not in hosts:
        raise _refused(index, "only https URLs of the hosts the operator allows are fetched")
    return host, port


def _public_address(host: str, port: int, index: int) -> str:
    """Return an address of `host`, all of which must be public."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise _refused(index, f"{host} has no address") from error
    if not all(is_public(address) for address in found):
        raise _refused(index, f"{host} has an address that is not public")
    return found[0]


def _get(connection: http.client.HTTPConnection, url: str) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    connection.request("GET", f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}")
    return connection.getresponse()


def _read(answer: http.client.HTTPResponse, room: _Room, deadline: float, index: int) -> bytes:
    body = bytearray()
    while chunk := answer.read1(_CHUNK):
        room.take(len(chunk), index)
        body += chunk
    if time.monotonic() > deadline:  # cut off, which reads like the end
        raise _too_slow(index)
    return bytes(body)


def _too_slow(index: int) -> Problem:
    return _refused(index, f"not whole within {_TOTAL_S:g} s")


def _refused(index: int, reason: str) -> Problem:
    return Problem(400, "image_url", f"image {index}: {reason}", param=f"input[{index}]")
