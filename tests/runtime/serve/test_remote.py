"""Images behind URLs are fetched from public addresses of allowed hosts, within size and time."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from mimruntime.serve import remote
from mimruntime.serve.problems import Problem
from mimruntime.serve.remote import Fetcher


class Site(http.server.BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        if kind == "bytes":
            self.answer(200, content=bytes(int(rest)))
        elif kind == "hop":
            self.answer(302, Location=f"/hop/{int(rest) - 1}" if int(rest) > 1 else "/bytes/5")
        elif kind == "elsewhere":
            self.answer(302, Location="https://example.org/cat.jpg")
        elif kind == "missing":
            self.answer(404)
        elif kind == "drip":
            self.drip(b"HTTP/1.1 200 OK\r\n" if rest == "headers" else b"HTTP/1.1 200 OK\r\n\r\n")

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def drip(self, start: bytes) -> None:
        """Send a byte now and then until nobody listens."""
        self.wfile.write(start)
        while not self.server.done.wait(0.02):
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address under which a server of this machine answers as a public host would, without TLS."""

    def connect(self: remote._PinnedConnection) -> None:
        self.sock = self._open = socket.create_connection((self._address, self.port), self.timeout)

    monkeypatch.setattr(remote, "_public_address", lambda *_: "127.0.0.1")
    monkeypatch.setattr(remote._PinnedConnection, "connect", connect)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.done = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://public.example:{server.server_port}"
    server.done.set()
    server.shutdown()
    server.server_close()


def fetch(*urls: str, most: int = 100) -> list[bytes | str]:
    return asyncio.run(Fetcher({"public.example"}, most).resolve(urls))


def test_what_is_behind_a_url_is_fetched_through_redirects_and_data_stays_as_it_is(site: str) -> None:
    assert fetch(f"{site}/bytes/7", "data:,x", f"{site}/hop/3") == [bytes(7), "data:,x", bytes(5)]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/elsewhere", "only https URLs of the hosts the operator allows are fetched"),
        ("/hop/4", "more than 3 redirects"),
        ("/missing", "answered 404"),
        ("/nothing", "cannot be read"),
    ],
)
def test_what_is_not_fetched_is_said(site: str, path: str, reason: str) -> None:
    with pytest.raises(Problem) as caught:
        fetch("data:,x", site + path)
    assert (caught.value.status_code, caught.value.param) == (400, "input[1]")
    assert reason in caught.value.detail


@pytest.mark.parametrize("sizes", [(101,), (60, 41)])
def test_the_images_of_a_request_are_too_large_together(site: str, sizes: tuple[int, ...]) -> None:
    assert fetch(f"{site}/bytes/60", f"{site}/bytes/40") == [bytes(60), bytes(40)]
    with pytest.raises(Problem, match="over 100 bytes") as caught:
        fetch(*(f"{site}/bytes/{size}" for size in sizes))
    assert caught.value.status_code == 413


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_drips_is_cut_off(site: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_TOTAL_S", 0.3)
    with pytest.raises(Problem, match=r"not whole within 0\.3 s"):
        fetch(f"{site}/drip/{part}", most=1_000_000)


@pytest.mark.parametrize(
    "found", [["93.184.216.34", "10.0.0.1"], ["::ffff:127.0.0.1"], ["fe80::1%eth0"], ["224.0.0.1"]]
)
def test_one_address_that_is_not_public_is_enough_to_refuse(found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in found]
    monkeypatch.setattr(remote.socket, "getaddrinfo", lambda *_, **__: entries)
    monkeypatch.setattr(http.client.HTTPSConnection, "request", None)  # it is not even asked
    with pytest.raises(Problem, match="has an address that is not public"):
        fetch("https://public.example/cat.jpg")
