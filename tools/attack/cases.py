"""Generate hostile cases: bytes for a socket and how to send them. Seed and number determine a case."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from attack.bodies import Message, Target, hostile_message
from attack.images import noise


class Manner(Enum):
    """How the client uses its socket."""

    ASK = "send all, read the answer"
    HALF_CLOSE = "send all, end sending, read the answer"
    RESET = "send all, reset the connection"
    HOLD = "send all, read nothing, leave open for a while"
    DRIP = "send a byte at each further request, read nothing"
    FLOOD = "open as many connections as it says, send nothing"


@dataclass(frozen=True)
class Case:
    """One hostile case."""

    kind: str
    data: bytes
    manner: Manner
    method: str = "POST"


def chance(seed: int, number: int) -> random.Random:
    """Return the random generator for request `number`."""
    return random.Random(f"{seed}/{number}")


def hostile_case(draw: random.Random, target: Target) -> Case:
    """Return a hostile case: in two of three the body is wrong, in the others the connection."""
    if draw.random() < 0.66:
        message = hostile_message(draw, target)
        manner = draw.choice([Manner.ASK] * 16 + [Manner.HALF_CLOSE, Manner.HALF_CLOSE, Manner.RESET, Manner.HOLD])
        return Case(message.kind, written(message), manner)
    return draw.choice(_CONNECTIONS)(draw, target)


def written(message: Message, *lines: str, version: str = "HTTP/1.1") -> bytes:
    """Return the bytes of a request; it closes the connection unless `lines` say otherwise."""
    head = [f"POST {message.path} {version}", "Host: localhost", f"Content-Length: {len(message.body)}"]
    head += [f"{name}: {value}" for name, value in message.headers.items()]
    return "\r\n".join([*head, *(lines or ("Connection: close",)), "", ""]).encode("latin-1") + message.body


def _good(draw: random.Random, target: Target) -> Message:
    return Message("good", "/v1/embeddings/image", draw.choice(target.photos))


def _length(draw: random.Random, target: Target) -> Case:
    """Return a case with a wrong Content-Length; with too large a value the body stays incomplete."""
    good = _good(draw, target)
    size = len(good.body)
    given = draw.choice(
        ["0", str(size - 1), str(size + 1), str(size * 2), "-1", "1e3", "9" * 30, "9" * 5_000, "", f"{size}, {size}"]
    )
    data = written(good).replace(f"Content-Length: {size}".encode(), f"Content-Length: {given}".encode())
    return Case("socket: wrong length", data, draw.choice([Manner.HALF_CLOSE, Manner.HOLD]))


def _chunked(draw: random.Random, target: Target) -> Case:
    """Return a case with Transfer-Encoding, with or without Content-Length, and valid or invalid chunks."""
    good = _good(draw, target)
    codings = ["chunked", "chunked", "gzip, chunked", "identity", "chunked, chunked", "\x0bchunked", "x" * 900]
    head = written(good, f"Transfer-Encoding: {draw.choice(codings)}").partition(b"\r\n\r\n")[0]
    if draw.random() < 0.6:
        head = head.replace(f"\r\nContent-Length: {len(good.body)}".encode(), b"")
    sizes = [b"%x" % len(good.body), b"ffffffffffffffffffff", b"-1", b"0", b"zz", b"1;" + b"x" * 9_000, b""]
    body = (
        draw.choice(sizes)
        + b"\r\n"
        + good.body
        + b"\r\n0\r\n"
        + draw.choice([b"\r\n", b"X: y\r\n" * 500 + b"\r\n", b""])
    )
    return Case("socket: chunks", head + b"\r\n\r\n" + body, Manner.HALF_CLOSE)


def _line(draw: random.Random, target: Target) -> Case:
    """Return a case with an unknown, old or invalid method, version or path."""
    methods = ["GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "DELETE", "PRI", "get", "X" * 3_000, "", "G\0T", "POST"]
    method = draw.choice([*methods, "M" + str(draw.randrange(10_000))])
    paths = [
        "/",
        "*",
        "//live",
        "/live/",
        "/live?" + "x" * 5_000,
        "/%00",
        "/%ff%fe",
        "/../../etc/passwd",
        "/" + "a" * 60_000,
    ]
    paths += [
        "http://evil.example/live",
        "/v2/models/%2e%2e%2fx",
        "/v2/models/" + "é" * 500,
        "/metrics",
        "/info",
        "/v1/models",
    ]
    paths += ["/live", "/ready", "/openapi.json", target.infer_path, "/v2/models/\ud800", "/a b"]
    version = draw.choice(["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/3.7", "", "ICY/1.0"])
    first = f"{method} {draw.choice(paths)} {version}\r\n".encode(errors="surrogatepass")
    return Case("socket: request line", first + _headers(draw) + b"\r\n", Manner.HALF_CLOSE, method)


def _headers(draw: random.Random) -> bytes:
    host = b"Host: localhost\r\n"
    return draw.choice(
        [
            host,
            b"",
            host * 2,
            host + b"X: " + b"\xff" * draw.choice([10, 60_000, 500_000]) + b"\r\n",
            host + b"".join(b"X%d: y\r\n" % index for index in range(draw.choice([200, 5_000]))),
            host + b"X: a\r\n\tb\r\n",
            host + b"X: a\rb\nc\0\r\n",
            host + b"Authorization: Bearer \xe9\0\r\n",
            host
            + b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n",
            host + b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\nConnection: Upgrade, HTTP2-Settings\r\n",
            host + b"Expect: 100-continue\r\nContent-Length: 10\r\n",
            host + b"Content-Length: 33554432\r\n",
            b"Host: evil.example/?\r\nX-Forwarded-Host: x\r\nX-Request-ID: " + b"i" * 900 + b"\r\n",
            host + b"X-Embedding-Space: " + b"\xff" * 300 + b"\r\n",
        ]
    )


def _unfinished(draw: random.Random, target: Target) -> Case:
    """Return a case with an incomplete request that is then abandoned, continued byte by byte, or reset."""
    data = written(_good(draw, target))
    kept = data[: draw.randrange(draw.choice([120, len(data)]))]
    return Case("socket: unfinished", kept, draw.choice([Manner.HOLD, Manner.DRIP, Manner.RESET, Manner.HALF_CLOSE]))


def _unread(draw: random.Random, _: Target) -> Case:
    """Return a case of many requests whose answers are not read."""
    data = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * draw.choice([20, 200])
    return Case("socket: answers not read", data, draw.choice([Manner.HOLD, Manner.RESET]), "GET")


def _pipelined(draw: random.Random, target: Target) -> Case:
    """Return a case of correct requests followed by other data on the same connection."""
    good = written(_good(draw, target), "Connection: keep-alive") * draw.randint(1, 8)
    return Case("socket: pipelined", good + noise(draw, 300), draw.choice([Manner.HALF_CLOSE, Manner.RESET]))


def _foreign(draw: random.Random, _: Target) -> Case:
    """Return a case with data that is not HTTP."""
    hello = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500)
    data = draw.choice(
        [hello, b"\r\n" * 500, b"\0" * 5_000, b"\xff" * 200_000, noise(draw, 2_000), b"SSH-2.0-x\r\n", b""]
    )
    return Case("socket: not HTTP", data, draw.choice([Manner.HALF_CLOSE, Manner.RESET, Manner.HOLD]))


def _flood(draw: random.Random, _: Target) -> Case:
    return Case("socket: connections", bytes(draw.choice([4, 16, 64])), Manner.FLOOD)


_CONNECTIONS: tuple[Callable[[random.Random, Target], Case], ...] = (
    _length,
    _chunked,
    _line,
    _line,
    _unfinished,
    _unread,
    _pipelined,
    _foreign,
    _flood,
)
