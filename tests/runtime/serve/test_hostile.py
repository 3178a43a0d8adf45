"""Whatever is sent, the answer is 4xx and the next good request is served."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import random
import re
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile_images
import pytest
from PIL import Image
from service import Service, running

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF")
BODY_LIMIT = 8_000_000
SLOW_S = 1.0


@pytest.fixture
def guarded(toy_artifact: Path, tmp_path: Path) -> Iterator[Service]:
    """A small server: bodies up to 8 MB, a second for each to arrive."""
    options = ("--max-body-mb", BODY_LIMIT // 1_000_000, "--body-timeout", SLOW_S, "--max-pixels", 2_000_000)
    with running(toy_artifact, *options, log=tmp_path / "log") as service:
        yield service


def encoded(photo: Path) -> dict[str, bytes]:
    picture = Image.open(photo).convert("RGB").resize((160, 120))
    files = {}
    for name in FORMATS:
        stream = io.BytesIO()
        picture.save(stream, name)
        files[name] = stream.getvalue()
    return files


def damaged(files: dict[str, bytes], chance: random.Random) -> bytes:
    """A file cut short, and bits flipped in what is left: never whole."""
    file = files[chance.choice(FORMATS)]
    kept = bytearray(file[: chance.randrange(1, int(len(file) * 0.9))])
    for _ in range(chance.randrange(20)):
        kept[chance.randrange(len(kept))] ^= 1 << chance.randrange(8)
    return bytes(kept)


def flipped(files: dict[str, bytes], chance: random.Random) -> bytes:
    """A whole file with bits flipped: it may still be an image."""
    file = bytearray(files[chance.choice(FORMATS)])
    for _ in range(chance.randrange(1, 40)):
        file[chance.randrange(len(file))] ^= 1 << chance.randrange(8)
    return bytes(file)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes that claims to be `width` by `height`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(2_000_000))) + chunk(b"IEND", b"")


def upload(service: Service, body: bytes, path: str = "/v1/embeddings/image", **headers: str) -> int:
    return service.call(path, body, **headers).status


def openai_json(service: Service, content: object) -> int:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return upload(service, body, "/v1/embeddings", Content_Type="application/json")


def path_like(service: Service, chance: random.Random) -> int:
    name = chance.choice(["../../etc/passwd", "/etc/shadow", "..%2f..%2fetc%2fpasswd", "file:///etc/passwd", "a\\b"])
    return chance.choice(
        [
            lambda: service.call(f"/v2/models/{name.replace(':', '')}").status,
            lambda: openai_json(service, {"model": name, "input": "data:image/png;base64,AAAA"}),
            lambda: openai_json(service, {"model": "toy", "input": name}),
            lambda: openai_json(service, {"model": "toy", "input": {"type": "image_url", "image_url": {"url": name}}}),
        ]
    )()


def bad_json(service: Service, chance: random.Random) -> int:
    return openai_json(
        service,
        chance.choice(
            [
                b"",
                b"{",
                b"[" * 100_000,
                b"\xff\xfe",
                b"null",
                b'{"model": "toy", "input": NaN}',
                {"model": "toy", "input": "data:image/png;base64," + "=" * chance.randrange(1, 50)},
                {"model": "toy", "input": "data:image/png;base64,\u00e9\u00e9"},
                {"model": "toy", "input": ["data:image/png;base64,AAAA"] * 10_000},
                {"model": "toy", "input": [[["x"]]]},
                {"model": 7, "input": None, "encoding_format": "hex"},
            ]
        ),
    )


def bad_tensor(service: Service, files: dict[str, bytes], chance: random.Random) -> int:
    raw = chance.randbytes(chance.randrange(64)) + damaged(files, chance)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": chance.choice(["image", "pixels"]),
                    "datatype": chance.choice(["BYTES", "UINT8"]),
                    "shape": chance.choice([[1], [1, 64, 64, 3], [1_000_000, 64, 64, 3], [0], [2, 1]]),
                    "parameters": {"binary_data_size": chance.choice([len(raw), 0, -1, 2**40, "x"])},
                }
            ]
        }
    ).encode()
    length = chance.choice([len(head), len(head) - 1, 0, 10**9])
    return upload(service, head + raw, "/v2/models/toy/infer", Inference_Header_Content_Length=str(length))


def raw_exchange(service: Service, *parts: bytes, pause_s: float = 0, half_close: bool = False) -> int:
    """The status after sending `parts` through a socket; 400 where the server just closes, which refuses too."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        try:
            answer = connection.recv(4096)
        except OSError:
            answer = b""
        return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 400


HEAD = b"POST /v1/embeddings/image HTTP/1.1\r\nHost: x\r\n"


def rare(service: Service, files: dict[str, bytes]) -> dict[str, int]:
    """Kinds that take long or much, each once."""
    huge = {"X-Huge": "a" * 200_000}
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    try:
        connection.request("GET", "/live", headers=huge)
        headers = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        headers = 400
    finally:
        connection.close()
    return {
        "100 MB announced": upload(service, bytes(100_000_000)),
        "100 MB chunked": service.call("/v1/embeddings/image", iter([bytes(1_000_000)] * 100)).status,
        "huge headers": headers,
        "slow body": raw_exchange(service, HEAD + b"Content-Length: 900\r\n\r\n", *[b"x"] * 8, pause_s=0.2),
        "slow headers": raw_exchange(service, *[bytes([byte]) for byte in HEAD[:9]], pause_s=0.2),
        "half closed": raw_exchange(service, HEAD + b"Content-Length: 900\r\n\r\nxx", half_close=True),
        "half a request": raw_exchange(service, HEAD, half_close=True),
        "two lengths": raw_exchange(service, HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
        "length and chunks": raw_exchange(
            service, HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        ),
        "no HTTP": raw_exchange(service, b"\x16\x03\x01\x02\x00" * 100),
        "bomb of 50,000 px": upload(service, bomb(50_000, 50_000)),
        "bomb just over": upload(service, bomb(2_000, 1_001)),
        "short of its pixels": upload(service, bomb(1_400, 1_400)),
        "base64 of a bomb": openai_json(
            service,
            {"model": "toy", "input": "data:image/png;base64," + base64.b64encode(bomb(60_000, 60_000)).decode()},
        ),
        "form without end": upload(service, b"--b\r\n", Content_Type="multipart/form-data; boundary=b"),
        "form without boundary": upload(service, b"x", Content_Type="multipart/form-data"),
        "tiff": upload(service, files["TIFF"]),
    }


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_hostile_input_is_refused_and_the_next_good_one_served(
    guarded: Service, photo: Path, count: int, record_property: Callable[..., None]
) -> None:
    files, chance = encoded(photo), random.Random(0)
    kinds = [
        lambda: upload(guarded, damaged(files, chance)),
        lambda: upload(guarded, damaged(files, chance)),
        lambda: openai_json(
            guarded,
            {"model": "toy", "input": "data:image/png;base64," + base64.b64encode(damaged(files, chance)).decode()},
        ),
        lambda: bad_json(guarded, chance),
        lambda: bad_tensor(guarded, files, chance),
        lambda: path_like(guarded, chance),
    ]
    statuses = Counter(rare(guarded, files).values())
    after_rare = guarded.resident_bytes()
    for number in range(count - sum(statuses.values())):
        status = kinds[number % len(kinds)]()
        statuses[status] += 1
        assert 400 <= status < 500, f"hostile input {number} got {status}"
        if number % 100 == 0:
            assert upload(guarded, photo.read_bytes()) == 200
    flips = Counter(upload(guarded, flipped(files, chance)) for _ in range(count // 10))
    assert set(flips) <= {200, 400, 413, 415}  # pixels that still decode are an image
    assert all(400 <= status < 500 for status in statuses), statuses
    assert upload(guarded, photo.read_bytes()) == 200
    assert guarded.metric("mimexport_images_in_flight") == 0
    assert guarded.resident_bytes() < after_rare + 60_000_000
    record_property("figures", f"{statuses}, flips {flips}, +{(guarded.resident_bytes() - after_rare) / 1e6:.1f} MB")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b'{"model":"toy","input":[' + b"0," * 500_000 + b"0]}"),
        ("/v1/embeddings", b'{"input":"x","model":"' + b"a" * 4_000_000 + b'"}'),
        ("/v2/models/toy/infer", b'{"inputs":[],"outputs":[' + b'{"name":"x"},' * 100_000 + b"{}]}"),
        ("/v2/models/toy/infer", b'{"inputs":[' + b"{}," * 300_000 + b"{}]}"),
    ],
)
def test_a_body_costs_a_few_times_its_bytes(toy: Service, path: str, body: bytes) -> None:
    upload(toy, body[:100_000], path)
    toy.reset_peak()
    before = toy.resident_bytes()
    answer = toy.call(path, body, Content_Type="application/json")
    assert answer.status in {413, 422}
    assert len(answer.body) < 500
    assert toy.resident_bytes(peak=True) < before + 3 * len(body) + 20_000_000


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (hostile_images.jpeg_of_scans(2400, 1600, 1000), "would take about .* s to decode"),
        (hostile_images.png(hostile_images.inflating(b"iCCP") * 500), "would take about .* s to decode"),
        (hostile_images.jpeg(9400, 9400, hostile_images.scan(4, 0, 0), components=4), "MB to decode; at most 1,024 MB"),
    ],
    ids=["scans", "profiles", "memory"],
)
def test_an_image_that_asks_for_too_much_is_413_with_the_reason(toy: Service, image: bytes, reason: str) -> None:
    answer = toy.call("/v1/embeddings/image", image)
    assert (answer.status, answer.json["error"]["code"]) == (413, "image_too_large")
    assert re.search(f"image 0: [\\d,]+ bytes: .*{reason}", answer.json["error"]["message"])


@pytest.mark.slow
def test_memory_is_flat_over_many_refused_bodies(guarded: Service) -> None:
    upload(guarded, bytes(BODY_LIMIT - 1))
    before = guarded.resident_bytes()
    for _ in range(40):
        assert upload(guarded, bytes(BODY_LIMIT - 1)) == 415
    assert guarded.resident_bytes() < before + 2 * BODY_LIMIT


def test_a_request_that_breaks_off_into_no_http_leaves_no_traceback(toy: Service) -> None:
    before = len(toy.log.read_text())
    chunks = b"POST /v1/embeddings/image HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    assert raw_exchange(toy, chunks + b"\r\nzz\r\n") == 400
    assert raw_exchange(toy, chunks + b"\r\n3\r\nabc\r\n", b"zz\r\n", pause_s=0.1) == 400
    refused = chunks.replace(b"/v1/embeddings/image", b"/live")
    assert raw_exchange(toy, refused + b"\r\n3\r\nabc\r\n", b"zz\r\n", pause_s=0.1) in {400, 413}
    assert toy.call("/live").status == 200
    assert "Traceback" not in toy.log.read_text()[before:]


def test_a_form_of_wrong_names_writes_no_line_of_its_own(toy: Service) -> None:
    before = len(toy.log.read_text())
    for byte in range(0x80, 0x90):
        body = b"--b\r\nX" + bytes([byte]) + b": y\r\n\r\nz\r\n--b--\r\n"
        assert upload(toy, body, Content_Type="multipart/form-data; boundary=b") == 400
    assert "invalid character" not in toy.log.read_text()[before:]
