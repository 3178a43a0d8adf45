"""Images behind URLs are fetched from public addresses of allowed hosts, within size and time."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from service import Service, running

from mimruntime.errors import OptionError
from mimruntime.serve.admission.buffer import Buffer
from mimruntime.serve.problems import Problem
from mimruntime.serve.protocols import remote
from mimruntime.serve.protocols.remote import Fetcher
from mimruntime.serve.settings import Served, Settings


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
        elif kind == "hold":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(int(rest)))
            self.server.done.wait()

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


async def local(*_: object) -> str:
    return "127.0.0.1"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address under which a server of this machine answers as a public host would, without TLS."""

    async def connect(_: str, port: int, address: str) -> object:
        return await asyncio.open_connection(address, port)

    monkeypatch.setattr(Fetcher, "_public_address", local)
    monkeypatch.setattr(remote, "_connect", connect)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.done = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://public.example:{server.server_port}"
    server.done.set()
    server.shutdown()
    server.server_close()


def fetcher(*urls: str, most: int = 100, buffer: Buffer | None = None) -> Fetcher:
    hosts = {"public.example", *(urlsplit(url).netloc for url in urls if url.startswith("https://public.example"))}
    return Fetcher(hosts, most, buffer or Buffer(1_000_000))


async def resolve(fetcher: Fetcher, *urls: str, by_item: bool = False) -> list[bytes | str | Problem]:
    async with fetcher.resolve(urls, by_item=by_item) as found:
        return found


def fetch(*urls: str, most: int = 100) -> list[bytes | str | Problem]:
    return asyncio.run(resolve(fetcher(*urls, most=most), *urls))


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


def test_a_server_that_never_shakes_hands_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_TOTAL_S", 0.3)
    monkeypatch.setattr(Fetcher, "_public_address", local)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Problem, match=r"not whole within 0\.3 s"):
        fetch(f"https://public.example:{silent.getsockname()[1]}/cat.jpg")


def test_a_look_up_without_an_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(remote, "_TOTAL_S", 0.3)
    monkeypatch.setattr(remote.socket, "getaddrinfo", lambda *_, **__: answered.wait(20) and [])
    try:
        with pytest.raises(Problem, match=r"not whole within 0\.3 s"):
            fetch("https://public.example/cat.jpg")
    finally:
        answered.set()


def test_where_one_image_fails_the_others_are_not_fetched_on(site: str) -> None:
    """The rest would hold places and memory that no answer is waiting for."""

    async def failing() -> set[str]:
        with pytest.raises(Problem, match="answered 404"):
            await resolve(fetcher(site), f"{site}/missing", f"{site}/drip/body")
        await asyncio.sleep(0)
        return {task.get_coro().__name__ for task in asyncio.all_tasks()}

    assert "_fetch" not in asyncio.run(failing())


def test_fetched_bytes_are_in_memory_until_they_are_embedded(site: str) -> None:
    async def embed() -> None:
        buffer = Buffer(100)
        both = fetcher(site, buffer=buffer)
        async with both.resolve([f"{site}/bytes/60", f"{site}/bytes/30"]):
            for by_item in (False, True):
                with pytest.raises(Problem, match="too many bytes are in flight") as caught:
                    await resolve(both, f"{site}/bytes/11", f"{site}/hold/0", by_item=by_item)
                assert (caught.value.status_code, caught.value.headers) == (429, {"Retry-After": "1"})
            assert await resolve(both, f"{site}/bytes/10") == [bytes(10)]
        assert await resolve(both, f"{site}/bytes/100") == [bytes(100)]

    asyncio.run(embed())


@pytest.mark.parametrize(
    "paths", [("/bytes/101",), ("/bytes/60", "/elsewhere"), ("/hold/60",), ("/hold/60", "/missing")]
)
def test_what_fails_gives_its_memory_back(site: str, paths: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        fetching = fetcher(site, buffer=Buffer(100 + (paths == ("/bytes/101",))))
        with monkeypatch.context() as patched:
            patched.setattr(remote, "_TOTAL_S", 0.3)
            with pytest.raises(Problem):
                await resolve(fetching, *(site + path for path in paths))
        assert await resolve(fetching, f"{site}/bytes/100") == [bytes(100)]

    asyncio.run(fail())


_LOCAL = """
import asyncio
from mimruntime.serve.protocols import remote
async def local(*_): return "127.0.0.1"
async def connect(_, port, address): return await asyncio.open_connection(address, port)
remote.Fetcher._public_address, remote._connect, remote._TOTAL_S = local, connect, 600
from mimexport.cli import main
main()
"""


def test_a_service_fetches_no_more_than_fits_into_memory(site: str, toy_artifact: Path, tmp_path: Path) -> None:
    limits = ("--max-body-mb", 1, "--max-buffered-mb", 1, "--remote-host", urlsplit(site).netloc)
    with running(toy_artifact, *limits, log=tmp_path / "log", program=_LOCAL) as service:

        def status() -> int:
            return service.call("/v1/embeddings", {"model": "toy", "input": f"{site}/bytes/600000"}).status

        def refused() -> bool:
            with held(service, f"{site}/hold/600000"):
                return any(status() == 429 for _ in range(20))

        wait_until(refused)  # where both arrive at once, the held one may be the one that is refused
        wait_until(lambda: status() == 415)  # zeros are no image


@contextlib.contextmanager
def held(service: Service, url: str) -> Iterator[None]:
    """A request for this image, whose client goes away at the end."""
    body = json.dumps({"model": "toy", "input": url}).encode()
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        client.sendall(head.encode() + body)
        yield


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def resolved_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(remote.socket, "getaddrinfo", lambda *_, **__: entries)
    monkeypatch.setattr(remote, "_connect", None)  # it is not even asked


@pytest.mark.parametrize(
    "found",
    [
        ["93.184.216.34", "10.0.0.1"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%eth0"],
        ["224.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["64:ff9b:1::1"],
        ["2002:7f00:1::1"],
        ["::127.0.0.1"],
        ["fec0::1"],
    ],
)
def test_one_address_that_is_not_public_is_enough_to_refuse(found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolved_to(monkeypatch, found)
    with pytest.raises(Problem, match="has an address that is not public"):
        fetch("https://public.example/cat.jpg")


def test_an_empty_answer_of_the_resolver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved_to(monkeypatch, [])
    with pytest.raises(Problem, match=r"public\.example has no address"):
        fetch("https://public.example/cat.jpg")


@pytest.mark.parametrize(("allowed", "port"), [("public.example", ":8443"), ("public.example:8443", "")])
def test_a_port_that_was_not_allowed_is_refused(allowed: str, port: str) -> None:
    with pytest.raises(Problem, match="only https URLs of the hosts the operator allows"):
        asyncio.run(resolve(Fetcher({allowed}, 100, Buffer(100)), f"https://public.example{port}/cat.jpg"))


@pytest.mark.parametrize("given", ["https://a.example", "a.example/x", "u@a.example", "a.example:x", ""])
def test_what_is_no_host_is_refused_at_the_start(given: str) -> None:
    with pytest.raises(OptionError, match="a remote host is HOST or HOST:PORT"):
        Settings(artifacts=(Served(Path("a")),), remote_hosts=(given,))
