"""Connections: how many there may be, and what becomes of those that are slow, idle or half closed."""

from __future__ import annotations

import contextlib
import http.client
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from proxy import make_certificate
from service import Service, running

from mimruntime.serve.admission import descriptors
from mimruntime.serve.logs import CountingHandler

_DESCRIPTORS = 96
_FEW = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({_DESCRIPTORS}, {_DESCRIPTORS}))
from mimexport.cli import main
main()
"""


@pytest.fixture(scope="module")
def few(toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of few descriptors, which waits a second for requests and for its answers to be taken."""
    log = tmp_path_factory.mktemp("few") / "log"
    with running(toy_artifact, "--body-timeout", 1, log=log, program=_FEW) as service:
        yield service


@pytest.fixture(scope="module")
def few_https(toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same over https."""
    folder = tmp_path_factory.mktemp("few_https")
    make_certificate(folder / "cert.pem", folder / "key.pem")
    with running(toy_artifact, "--body-timeout", 1, log=folder / "log", program=_FEW, tls=folder) as service:
        yield service


def opened(service: Service, stack: contextlib.ExitStack, sent: bytes = b"") -> socket.socket:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=20))
    connection.sendall(sent)
    return connection


def asked(service: Service, stack: contextlib.ExitStack) -> http.client.HTTPConnection:
    """A connection that has had an answer and is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    stack.callback(connection.close)
    connection.request("GET", "/v1/models")
    answer = connection.getresponse()
    assert answer.read()
    assert answer.status == 200
    return connection


def status(service: Service, path: str) -> int:
    """Of the answer, or 0 where there is none."""
    try:
        return service.call(path).status
    except OSError:
        return 0


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_more_connections_than_descriptors_neither_stop_the_service_nor_fill_its_log(few: Service) -> None:
    assert "--max-connections 1024 needs 1280 descriptors, 96 are allowed" in few.log.read_text()
    with contextlib.ExitStack() as stack:
        for _ in range(3 * _DESCRIPTORS):
            opened(few, stack, b"GET /v1/models HTTP/1.1\r\n")
        wait_until(lambda: status(few, "/live") == 200)
        wait_until(lambda: status(few, "/v1/models") == 200)
    assert len(few.log.read_text().splitlines()) < 40


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(None, id="nothing"),
        pytest.param(b"", id="a handshake"),
        pytest.param(b"\0\r\n\r\n", id="no HTTP"),
        pytest.param(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", id="a request"),
    ],
)
def test_silent_clients_of_https_do_not_stop_the_service(few_https: Service, sent: bytes | None) -> None:
    """Whether they never begin TLS or never end it."""
    assert few_https.context is not None
    with contextlib.ExitStack() as stack:
        for _ in range(3 * _DESCRIPTORS):
            client = opened(few_https, stack)
            if sent is not None:
                with contextlib.suppress(OSError):  # it is one too many
                    client = few_https.context.wrap_socket(client, server_hostname="localhost")
                    stack.enter_context(client).sendall(sent)
                    if sent:
                        client.recv(1)
        wait_until(lambda: status(few_https, "/live") == 200)
        wait_until(lambda: status(few_https, "/v1/models") == 200)
    assert len(few_https.log.read_text().splitlines()) < 40


def test_failed_handshakes_do_not_count_as_connections(few_https: Service) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3 * _DESCRIPTORS):
            with contextlib.suppress(ConnectionError):
                opened(few_https, stack, b"GET /live HTTP/1.1\r\n\r\n").recv(1)
    wait_until(lambda: status(few_https, "/v1/models") == 200)


def test_a_handshake_that_never_begins_is_not_waited_for(few_https: Service) -> None:
    with contextlib.ExitStack() as stack:
        assert opened(few_https, stack).recv(1) == b""


def test_idle_connections_make_room_for_new_ones_the_oldest_first(few: Service) -> None:
    with contextlib.ExitStack() as stack:
        kept = [asked(few, stack) for _ in range(_DESCRIPTORS // 2 + 8)]
        assert kept[0].sock.recv(1) == b""
        kept[-1].request("GET", "/live")
        assert kept[-1].getresponse().status == 200


def test_a_client_that_does_not_take_its_answers_is_cut_off(few: Service) -> None:
    with contextlib.ExitStack() as stack:
        slow = opened(few, stack)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):
            slow.settimeout(2)
            slow.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
        wait_until(lambda: "did not take its answer within 1 s is cut off" in few.log.read_text())


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_ends_its_sending_gets_its_answer(toy: Service, photo: Path, version: str) -> None:
    body = photo.read_bytes()
    head = f"POST /v1/embeddings/image HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        connection = opened(toy, stack, head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        assert b"embedding" in answer.read()
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("limits", "protocols", "allowed", "raised"),
    [
        ((1024, 4096), 1, 1000, 1256),
        ((1024, 1100), 1, 844, 1100),
        ((100, 100), 1, 50, 100),
        ((-1, -1), 1, 1000, None),
        ((1024, 4096), 2, 1000, 2256),
        ((1024, 1100), 2, 422, 1100),
    ],
)
def test_connections_are_as_many_as_descriptors_allow(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], protocols: int, allowed: int, raised: int | None
) -> None:
    soft = [None]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: soft.__setitem__(0, pair[0]))
    assert (descriptors.fit_connections(1000, protocols), soft[0]) == (allowed, raised)


def test_a_line_that_repeats_itself_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    handler = CountingHandler()
    said = [logging.LogRecord("x", logging.ERROR, "", 0, "no %s", ("room",), None) for _ in range(5)]
    said[4].created += 11
    for record in [*said, logging.LogRecord("x", logging.ERROR, "", 0, "other", None, None)]:
        handler.emit(record)
    handler.close()
    lines = [line.partition(" ERROR ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["no room", "3 more within 10 s: no room", "no room", "other"]
