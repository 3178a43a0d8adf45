"""What operators meet: health, metrics, configuration, keys, limits, the process itself."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import os
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from service import START, Service, data_uri, running

from mimruntime.cli.serve import serve_command
from mimruntime.embedder import Embedder
from mimruntime.engines import ENGINES, engine_module
from mimruntime.errors import OptionError
from mimruntime.serve.execution.opening import open_embedder
from mimruntime.serve.listening import bind, make_config
from mimruntime.serve.settings import Served, Settings


def test_health_says_so(toy: Service) -> None:
    assert [toy.call(path).status for path in ("/live", "/ready", "/health", "/v2/health/live")] == [200] * 4


def test_info_holds_the_manifest_and_what_really_runs(toy: Service, space: str) -> None:
    (model,) = toy.call("/info").json["models"]
    assert model["provider"] == "cpu"
    assert model["batch_sizes"] == [16, 8, 4, 2, 1]
    assert model["manifest"]["embedding_space"] == model["space"] == space


def test_prometheus_reads_the_metrics(toy: Service, photo: Path) -> None:
    before = toy.metric("mimexport_images_total")
    toy.call("/v1/embeddings/image", photo.read_bytes())
    toy.call("/v1/embeddings/image", b"no image")
    assert toy.metric("mimexport_images_total") == before + 1
    assert toy.metric("mimexport_failures_total") >= 1
    families = {family.name: family for family in text_string_to_metric_families(toy.call("/metrics").body.decode())}
    for name in ("decode", "queue", "inference", "request"):
        assert families[f"mimexport_{name}_seconds"].type == "histogram"
    assert {"mimexport_queue_length", "mimexport_images_in_flight", "mimexport_batch_size"} <= set(families)
    (build,) = families["mimexport_build_info"].samples
    assert build.labels["provider"] == "cpu"
    assert build.labels["engine"].split()[0] in ENGINES


def test_what_a_killed_worker_had_in_flight_is_forgotten_and_what_it_did_is_not(tmp_path: Path) -> None:
    work = (
        "import os; from mimruntime.serve.metrics import Metrics; m = Metrics('1'); m.images.labels('toy').inc(7);"
        " m.in_flight.labels('toy').set(5); m.ready.labels('toy').set(0); os._exit(1)"
    )
    ask = "from mimruntime.serve.metrics import Metrics; print(Metrics('1').text().decode())"
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", work], env=env, check=False)
    text = subprocess.run([sys.executable, "-c", ask], env=env, check=True, capture_output=True, text=True).stdout
    assert 'mimexport_images_total{model="toy"} 7.0' in text
    assert "mimexport_images_in_flight{" not in text
    assert "mimexport_ready{" not in text


def test_it_says_where_it_listens_once_it_does(toy: Service) -> None:
    assert f"listening on {toy.url}" in toy.log.read_text()


def test_metrics_do_not_grow_with_what_strangers_ask_for(toy: Service) -> None:
    for path in ("/x1", "/x2", "/v2/models/a/ready", "/v2/models/b/ready"):
        toy.call(path)
    text = toy.call("/metrics").body.decode()
    assert "/x1" not in text
    assert "models/a" not in text


def test_metrics_do_not_grow_with_methods_that_do_not_exist(toy: Service) -> None:
    for number in range(3):
        assert toy.call("/live", method=f"M{number}").status == 405
    text = toy.call("/metrics").body.decode()
    assert 'method="M' not in text
    assert 'mimexport_requests_total{endpoint="/live",method="other",status="405"}' in text


@pytest.mark.parametrize("path", ["/live", "/ready", "/health", "/metrics", "/v2/health/live", "/v2/health/ready"])
def test_head_is_get_without_content(toy: Service, path: str) -> None:
    answer = toy.call(path, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert int(answer.headers["Content-Length"]) > 0


def test_a_host_header_sends_nobody_elsewhere(toy: Service) -> None:
    answer = toy.call("/live/", Host="elsewhere.example")
    assert (answer.status, answer.headers["Location"]) == (404, None)


@pytest.mark.parametrize("pieces", [None, 2])
def test_what_is_open_to_all_takes_no_body(toy: Service, pieces: int | None) -> None:
    for path in ("/live", "/ready", "/metrics", "/openapi.json"):
        answer = toy.call(path, iter([b"x"] * pieces) if pieces else bytes(1_000_000))
        assert (answer.status, answer.json["error"]["message"]) == (413, "this path takes no body")


def test_a_request_with_two_ideas_of_its_end_is_the_last_of_its_connection(toy: Service) -> None:
    both = b"POST /v1/embeddings/image HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    with begun(toy, both + b"0\r\n\r\nGET /live HTTP/1.1\r\nHost: x\r\n\r\n") as connection:
        answers = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_no_torch_in_the_process(toy: Service) -> None:
    assert "libtorch" not in Path(f"/proc/{toy.process.pid}/maps").read_text()


def test_a_giant_picture_is_refused_by_its_header(toy: Service) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
    answer = toy.call("/v1/embeddings/image", bomb)
    assert (answer.status, answer.json["error"]["code"]) == (413, "image_too_large")
    assert "50000x50000" in answer.json["error"]["message"]


def test_tiff_is_off_whatever_it_is_called(toy: Service, photo: Path) -> None:
    tiff = io.BytesIO()
    Image.open(photo).save(tiff, "TIFF")
    answer = toy.call("/v1/embeddings/image", tiff.getvalue(), Content_Type="image/jpeg")
    assert (answer.status, answer.json["error"]["code"]) == (415, "image_format")


def test_a_body_over_the_limit_is_refused_announced_or_not(toy: Service) -> None:
    assert toy.call("/v1/embeddings/image", bytes(9_000_000)).status == 413
    chunked = toy.call("/v1/embeddings/image", iter([bytes(1_000_000)] * 9))
    assert (chunked.status, chunked.json["error"]["code"]) == (413, "body_too_large")


@pytest.fixture(scope="module")
def tight(toy_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = ("--max-body-mb", 1, "--max-buffered-mb", 2, "--max-connections", 4)
    with running(toy_artifact, *options, log=tmp_path_factory.mktemp("tight") / "log") as service:
        yield service


@contextlib.contextmanager
def held_open(service: Service, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    """Connections that have sent this much and go on with nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(begun(service, sent))) for _ in range(count)]


def begun(service: Service, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    connection.sendall(sent)
    return connection


def test_bodies_are_counted_while_they_are_held_and_no_longer(tight: Service) -> None:
    for _ in range(10):
        assert tight.call("/v1/embeddings/image", bytes(900_000)).json["error"]["code"] == "image_format"
    unfinished = b"POST /v1/embeddings/image HTTP/1.1\r\nHost: x\r\nContent-Length: 900001\r\n\r\n" + bytes(900_000)
    with held_open(tight, unfinished, 3) as connections:
        readable, _, _ = select.select(connections, [], [], 20)
        refusal = http.client.HTTPResponse(readable[0])
        refusal.begin()
        assert (refusal.status, refusal.headers["Retry-After"]) == (429, "1")
        assert json.loads(refusal.read())["error"]["code"] == "memory_full"
    wait_until(lambda: tight.call("/v1/embeddings/image", bytes(900_000)).json["error"]["code"] == "image_format")


def test_over_the_connections_allowed_requests_are_refused_and_balancers_are_not(tight: Service) -> None:
    wait_until(lambda: tight.call("/v1/models").status == 200)
    with held_open(tight, b"POST /v1/embeddings/image HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n", 4):
        wait_until(lambda: tight.call("/v1/models").status == 503)
        for path in ("/v1/models", "/v2"):
            answer = tight.call(path)
            assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (503, "1", "close")
            assert "more than 4 connections are open" in str(answer.json["error"])
        assert [tight.call(path).status for path in ("/live", "/ready", "/v2/health/live", "/metrics")] == [200] * 4
    wait_until(lambda: tight.call("/v1/models").status == 200)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_compressed_bodies_are_not_taken(toy: Service) -> None:
    assert toy.call("/v1/embeddings/image", b"x", Content_Encoding="gzip").status == 415


def test_unknown_paths_and_methods_are_answered_in_shape(toy: Service) -> None:
    assert toy.call("/v1/nothing").json["error"]["code"] == "not_found"
    assert toy.call("/v1/embeddings/image").status == 405
    assert isinstance(toy.call("/v2/nothing").json["error"], str)


def test_configured_by_environment_with_keys_two_artifacts_and_json_logs(
    toy_artifact: Path, toy_without_selection: Path, tmp_path: Path, photo: Path
) -> None:
    (tmp_path / "keys").write_text("third\n")
    env = {
        "MIMEXPORT_ARTIFACTS": f"{toy_artifact}:other={toy_without_selection}",
        "MIMEXPORT_API_KEY": "first second \u00e9",
        "MIMEXPORT_FORMAT": "JPEG TIFF",
        "MIMEXPORT_LOG_JSON": "1",
        "MIMEXPORT_TRUSTED_PROXY": "::1 127.0.0.0/8",
        "MIMEXPORT_GRPC_PORT": "0",
        "MIMEXPORT_API_KEY_FILE": str(tmp_path / "keys"),
    }
    with running(log=tmp_path / "log", env=env) as service:
        image, grpc_address = photo.read_bytes(), service.grpc
        assert service.call("/v1/embeddings/image?model=toy", image).status == 401
        assert service.call("/v1/models", Authorization="Bearer wrong").status == 401
        assert service.call("/v1/models", Authorization="Bearer wrong").headers["WWW-Authenticate"] == "Bearer"
        closed = ("/v2", "/v2/models/toy", "/v2/models/toy/infer", "/info", "/v1/models")
        assert {path: service.call(path).status for path in closed} == dict.fromkeys(closed, 401)
        opened = ("/live", "/ready", "/metrics", "/docs", "/docs/start.js", "/v2/health/live", "/v2/health/ready")
        assert {path: service.call(path).status for path in opened} == dict.fromkeys(opened, 200)
        assert service.call("/openapi.json").json["security"] == [{"key": []}]
        for part in ("first", "second", "first second", "\u00e9"):
            assert service.call("/v1/models", Authorization=f"Bearer {part}").status == 401
        as_utf8 = "first second \u00e9".encode().decode("latin-1")  # as curl sends it
        assert service.call("/v1/models", Authorization=f"Bearer {as_utf8}").status == 200
        key = {"Authorization": "Bearer first second \u00e9"}
        assert [model["id"] for model in service.call("/v1/models", **key).json["data"]] == ["toy", "other"]
        proxied = {"X-Forwarded-For": "198.51.100.9, 203.0.113.7", "X-Forwarded-Proto": "https", "X-Request-Id": "p-1"}
        assert service.call("/v1/embeddings/image?model=other", image, **key, **proxied).json["model"] == "other"
        service.call("/" + "x" * 5000)
        with grpc.insecure_channel(service.grpc) as channel:
            about = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            key_of_keys = [("authorization", "Bearer third")]
            assert b"mimexport" in about(b"", timeout=20, metadata=key_of_keys)
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                about(b"", timeout=20, metadata=[("x-request-id", "g-1")])
            assert channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20) == b"\x08\x01"
        for path in ("/v1/embeddings/image?model=other&selection=true", "/v2/models/other/infer"):
            named = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]}]}
            asked = named | {"outputs": [{"name": "selection"}]} if "/v2/" in path else image
            refused = service.call(path, asked, **key)
            assert refused.status == 400
            assert "model 'other' has no output 'selection'; its artifact must be built with" in refused.body.decode()
        unnamed = service.call("/v1/embeddings/image", image, **key)
        assert (unnamed.status, unnamed.json["error"]["param"]) == (422, "model")
        assert "add ?model=NAME to the URL; known: other, toy" in unnamed.json["error"]["message"]
        assert service.call("/v1/embeddings/image?model=toy", black_png(), **key).status == 415
    entries = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]  # nothing but JSON
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry["time"]) for entry in entries)
    said = [entry["message"] for entry in entries if entry["message"] != "request"]
    assert said[:2] == [f"gRPC on {grpc_address}", f"listening on {service.url}"]
    assert [said[-2].partition(";")[0], said[-1]] == ["the service ends", "stopped"]
    (through_proxy,) = (entry for entry in entries if entry.get("request_id") == "p-1")
    del through_proxy["time"], through_proxy["ms"]
    assert through_proxy == {
        "level": "info", "message": "request", "request_id": "p-1", "method": "POST", "path": "/v1/embeddings/image",
        "status": 200, "model": "other", "images": 1, "reason": None, "client": "203.0.113.7", "scheme": "https",
    }  # fmt: skip
    (over_grpc,) = (entry for entry in entries if entry.get("request_id") == "g-1")
    assert (over_grpc["status"], over_grpc["scheme"]) == ("UNAUTHENTICATED", "grpc")
    assert any(entry.get("reason") == "invalid_api_key" for entry in entries)
    assert max(len(entry.get("path", "")) for entry in entries) == 256
    assert "second" not in (tmp_path / "log").read_text()


def test_no_proxy_is_believed_that_is_not_named() -> None:
    config = make_config(Settings(artifacts=(Served(Path("a")),)), FastAPI())
    assert (config.proxy_headers, config.forwarded_allow_ips) == (False, [])


def test_what_ends_the_service_is_a_line_of_json_too(toy_artifact: Path, toy: Service) -> None:
    done = mimexport("serve", toy_artifact, "--log-json", "--port", toy.port)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, json.loads(line)["level"]) == (1, "critical")
    assert "cannot listen on" in json.loads(line)["message"]


def test_warnings_and_ends_of_threads_are_lines_of_json() -> None:
    script = (
        "import threading, warnings; from mimruntime.serve.logs import set_up_logs; set_up_logs(as_json=True);"
        " warnings.warn('odd\\nlines'); thread = threading.Thread(target=lambda: 1 / 0, name='t'); thread.start(); thread.join()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    warning, end = map(json.loads, done.stderr.splitlines())
    assert "odd\nlines" in warning["message"]
    assert (end["message"], "ZeroDivisionError" in end["exception"]) == ("thread t ended", True)


def test_keys_in_a_file_are_read_again_at_sighup_by_every_worker_over_https(toy_artifact: Path, tmp_path: Path) -> None:
    keys, cert, key = tmp_path / "keys", tmp_path / "cert.pem", tmp_path / "key.pem"
    keys.write_text("old key\r\n\n\u00e9t\u00e9\n", "utf-8")
    make_certificate(cert, key)
    options = ("--api-key-file", keys, "--tls-cert", cert, "--tls-key", key, "--workers", 2)
    with running(toy_artifact, *options, log=tmp_path / "log", wait=False) as service:
        context = ssl.create_default_context(cafile=cert)

        def answer(key: str, status: int) -> bool:
            """Whether every one of some connections, to one worker or the other, gets this answer."""
            return all(https_status(service, context, key) == status for _ in range(6))

        wait_until(lambda: answer("old key", 200))
        assert answer("\u00e9t\u00e9", 200)
        assert answer("old", 401)
        assert answer("", 401)
        keys.write_text("new key\n")
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: answer("new key", 200))
        wait_until(lambda: answer("old key", 401))
        keys.write_text("\n")
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "holds no key" in (tmp_path / "log").read_text())
        assert https_status(service, context, "new key") == 200
    assert f"listen on https://127.0.0.1:{service.port}" in (tmp_path / "log").read_text()


def https_status(service: Service, context: ssl.SSLContext, key: str) -> int:
    """0 where nobody listens yet."""
    connection = http.client.HTTPSConnection("localhost", service.port, timeout=20, context=context)
    with contextlib.closing(connection), contextlib.suppress(ConnectionError):
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        return connection.getresponse().status
    return 0


def make_certificate(cert: Path, key: Path) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    about = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert]
    subprocess.run([*command, *about], check=True, capture_output=True)


def test_a_vector_that_is_not_finite_is_never_sent(toy: Service) -> None:
    answer = toy.call("/v1/embeddings/image", black_png())  # the toy graph divides by the length of a zero vector
    assert answer.status == 400
    assert "not finite" in answer.json["error"]["message"]


def black_png() -> bytes:
    png = io.BytesIO()
    Image.new("RGB", (9, 9)).save(png, "PNG")
    return png.getvalue()


def mimexport(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_folder_with_an_equals_sign_is_written_with_a_slash() -> None:
    assert Served.parse("a/b=c") == Served(Path("a/b=c"))
    assert Served.parse("./b=c") == Served(Path("b=c"))
    assert Served.parse("next-2.1=a/b=c") == Served(Path("a/b=c"), "next-2.1")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Served.parse("a b=x"), "'a b=x' is no NAME=FOLDER; a name has letters"),
        (lambda: Served.parse("a="), "'a=' is no NAME=FOLDER"),
        (lambda: settings_with(trusted_proxies=("proxy",)), "--trusted-proxy proxy: 'proxy' does not appear to be"),
        (lambda: settings_with(grpc_port=0, workers=2), "--grpc-port 0 gives each worker another port"),
    ],
)
def test_what_could_never_work_is_refused_before_anything_is_opened(make: Callable[[], object], text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(text)):
        make()


def settings_with(**given: object) -> Settings:
    return Settings(artifacts=(Served(Path("a")),), **given)


def test_check_refuses_two_of_one_name_as_serve_does(toy_artifact: Path) -> None:
    done = CliRunner().invoke(serve_command, [str(toy_artifact), str(toy_artifact), "--check"])
    assert isinstance(done.exception, OptionError)
    assert f"two artifacts are named 'toy': {toy_artifact} and {toy_artifact}; give one" in str(done.exception)


def test_a_port_of_grpc_that_is_taken_is_named(toy: Service) -> None:
    with pytest.raises(OptionError, match="stop the other program, or give another --host or --grpc-port"):
        bind("127.0.0.1", toy.port, option="--grpc-port")


def test_check_prints_what_would_be_served_and_exits(toy_artifact: Path, space: str) -> None:
    done = mimexport(
        "serve", f"next={toy_artifact}", "--check", "--engine", "onnxruntime", "--max-batch", 4, "--api-key", "hidden"
    )
    assert done.returncode == 0
    for part in ("next: fp32, onnxruntime", "on cpu", space, "batches of 4, 2, 1", "max_queue        64"):
        assert part in done.stdout
    assert "hidden" not in done.stdout


def test_scaled_decoding_is_asked_for_by_its_variable_and_reaches_the_decoder(toy_artifact: Path, photo: Path) -> None:
    variable = {"MIMEXPORT_SCALED_DECODING": "1"}
    done = CliRunner().invoke(serve_command, [str(toy_artifact), "--check", "--no-check-reference"], env=variable)
    assert "scaled_decoding  True" in done.output
    given = {"artifacts": (Served(toy_artifact),), "check_reference": False, "engine": "onnxruntime"}
    pixels = []
    for scaled in (False, True):
        with open_embedder(toy_artifact, Settings(**given, scaled_decoding=scaled)) as embedder:
            pixels.append(embedder.prepare(photo))
    assert (pixels[0] != pixels[1]).any()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["no-such-folder"], 1, "error: no artifact at no-such-folder"),
        (
            ["{toy}", "{toy}"],
            1,
            "error: two artifacts are named 'toy': {toy} and {toy}; give one another name: toy-2={toy}",
        ),
        (["{toy}", "--provider", "cuda"], 1, "error: provider 'cuda' is not part of"),
        (["{toy}", "--port", "{port}"], 1, "error: cannot listen on 127.0.0.1:{port} (Address already in use); stop"),
        (["{toy}", "--api-key", " "], 1, "error: an API key is empty"),
        (["{toy}", "--api-key-file", "no-such-file"], 1, "error: the file of API keys no-such-file cannot be read"),
        (["{toy}", "--api-key-file", os.devnull], 1, f"error: the file of API keys {os.devnull} holds no key"),
        (["{toy}", "--tls-cert", "cert.pem"], 1, "error: --tls-cert and --tls-key go together"),
        (["{toy}", "--tls-cert", "no.pem", "--tls-key", "no.pem"], 1, "--tls-key no.pem cannot be used: "),
        (["{toy}", "--format", "JPG"], 1, "error: unknown image format 'JPG'"),
        (["{toy}", "--max-batch", "0"], 2, "--max-batch"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_served_ends_at_once_in_one_line(
    toy_artifact: Path, toy: Service, arguments: list[str], code: int, text: str
) -> None:
    done = mimexport("serve", *(argument.format(toy=toy_artifact, port=toy.port) for argument in arguments))
    assert done.returncode == code
    assert text.format(toy=toy_artifact, port=toy.port) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("variable", "key"), [("API_KEY", ""), ("API_KEY", "  "), ("API_KEY_FILE", "")])
def test_a_key_that_was_lost_on_the_way_does_not_open_the_door(toy_artifact, monkeypatch, variable, key) -> None:
    monkeypatch.setenv(f"MIMEXPORT_{variable}", key)
    done = mimexport("serve", toy_artifact, "--check")
    assert done.returncode == 1
    assert f"error: MIMEXPORT_{variable} is there and empty; unset it to serve without a key" in done.stderr


@pytest.mark.parametrize("engine", ["auto", "tensorrt-rtx"])
def test_workers_share_the_cpus_of_an_engine_that_has_some(toy_artifact, monkeypatch, engine: str) -> None:
    asked = {}
    monkeypatch.setattr(Embedder, "open", lambda path, **options: asked.update(options))
    monkeypatch.setattr("mimruntime.serve.execution.opening.available_cpus", lambda: 9)
    open_embedder(toy_artifact, Settings(artifacts=(Served(toy_artifact),), engine=engine, workers=2))
    assert (engine_module(asked["engine"]).NEEDS_GPU, asked["threads"]) in {(False, 4), (True, None)}
    open_embedder(toy_artifact, Settings(artifacts=(Served(toy_artifact),), engine=engine, workers=2, threads=3))
    assert asked["threads"] == 3


def test_vectors_do_not_depend_on_the_batch_they_rode_in(
    toy: Service, photos: list[Path], expected: np.ndarray
) -> None:
    order = np.random.default_rng(0).integers(0, len(photos), 64)

    def embed(index: int) -> list[float]:
        return toy.call("/v1/embeddings/image", photos[index].read_bytes()).json["data"][0]["embedding"]

    before = toy.metric("mimexport_batch_size_count")
    with ThreadPoolExecutor(16) as pool:
        vectors = np.array(list(pool.map(embed, order)))
    assert (vectors * expected[order]).sum(axis=1).min() > 0.999999
    assert toy.metric("mimexport_batch_size_count") - before < 64  # some shared a run


def test_the_docs_page_loads_nothing_from_elsewhere(toy: Service) -> None:
    page = toy.call("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    loaded = re.findall(rb'(?:src|href)="([^"]*)"', page.body)
    assert loaded == [b"docs/swagger-ui.css", b"docs/swagger-ui-bundle.js", b"docs/start.js"]
    assert b"<script>" not in page.body  # the policy would refuse it
    for name in loaded:
        plain = toy.call(f"/{name.decode()}")
        packed = toy.call(f"/{name.decode()}", Accept_Encoding="gzip, br")
        content = gzip.decompress(packed.body) if packed.headers["Content-Encoding"] else packed.body
        assert (plain.status, plain.headers["Content-Encoding"], plain.body) == (200, None, content)
    assert b"SwaggerUIBundle" in toy.call("/docs/swagger-ui-bundle.js").body
    assert [
        toy.call(path).status for path in ("/docs/", "/docs/x", "/docs/swagger-ui/NOTICE", "/docs/..%2fapp.py")
    ] == [404] * 4


def test_openapi_has_an_example_of_each_body(toy: Service) -> None:
    schema = toy.call("/openapi.json").json
    body = schema["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    uri = body["examples"][0]["input"]
    assert toy.call("/v1/embeddings", {"model": "toy", "input": uri}).status == 200
    assert {"200", "400", "401", "404", "409", "413", "415", "422", "429", "503", "504"} <= set(
        schema["paths"]["/v1/embeddings"]["post"]["responses"]
    )


def test_the_reference_has_every_path_option_and_status_of_the_schema(toy: Service) -> None:
    page = (Path(__file__).parents[3] / "docs/reference/http.md").read_text()
    schema = toy.call("/openapi.json").json
    listed = {*re.findall(r"[` ](/[\w/{}.-]*)`", page)}
    assert {*schema["paths"]} <= listed
    assert listed - {*schema["paths"]} == {"/openapi.json", "/docs", "/v2/models/NAME/config", "/v2/models/NAME/stats"}
    statuses = {code for methods in schema["paths"].values() for each in methods.values() for code in each["responses"]}
    table = page[page.index("## Status codes") : page.index("## gRPC")]
    assert statuses - {"200", "500"} == {*re.findall(r"\b[45]\d\d\b", table)}
    body = schema["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {field for field in body["properties"] if f"`{field}`" not in page} == set()


def test_remote_urls_need_an_allowed_host(toy_artifact: Path, tmp_path: Path, photo: Path) -> None:
    hosts = ("--remote-host", "localhost", "--remote-host", "169.254.169.254")
    with running(toy_artifact, *hosts, log=tmp_path / "log") as service:
        for url, reason in (
            ("https://localhost/cat.jpg", "not public"),
            ("https://169.254.169.254/latest/meta-data", "not public"),
            ("https://example.org/cat.jpg", "hosts the operator allows"),
            ("https://user@localhost/cat.jpg", "hosts the operator allows"),
        ):
            answer = service.call("/v1/embeddings", {"model": "toy", "input": [data_uri(photo), url]})
            assert (answer.status, answer.json["error"]["param"]) == (400, "input[1]")
            assert reason in answer.json["error"]["message"]
