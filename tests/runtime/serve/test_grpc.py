"""The stock Triton client over gRPC, and what no client of good will sends."""

from __future__ import annotations

import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from attack import over_grpc
from attack.bodies import Target
from attack.targets import read_target
from google.protobuf import json_format
from service import Service

from mimruntime import Embedder
from mimruntime.serve.problems import Problem
from mimruntime.serve.rpc.convert import read_infer
from mimruntime.serve.rpc.messages import HEALTH, MESSAGES, SERVICE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
INFER = f"/{SERVICE}/ModelInfer"


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("tritonclient.grpc")


@pytest.fixture
def client(toy: Service, triton):
    with triton.InferenceServerClient(toy.grpc) as client:
        yield client


@pytest.fixture
def channel(toy: Service) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(toy.grpc) as channel:
        yield channel


def files(triton, images: list[bytes]):
    tensor = triton.InferInput("image", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, object))
    return tensor


def refused(work: Callable[[], object]) -> tuple[str, str]:
    """Code and text of a refusal."""
    with pytest.raises(grpc.RpcError) as caught:
        work()
    return caught.value.code().name, caught.value.details()


def test_files_in_vectors_and_weights_out(
    client, triton, photos: list[Path], expected: np.ndarray, weights: np.ndarray
) -> None:
    outputs = [triton.InferRequestedOutput(name) for name in ("embedding", "selection")]
    images = files(triton, [path.read_bytes() for path in photos])
    answer = client.infer("toy", [images], outputs=outputs, request_id="seven")
    assert (answer.as_numpy("embedding") * expected).sum(axis=1).min() > 0.999999
    np.testing.assert_allclose(answer.as_numpy("selection"), weights, atol=1e-6)
    assert answer.get_response().id == "seven"


def test_pixels_as_the_graph_takes_them(
    client, triton, toy_artifact: Path, photo: Path, photos: list[Path], expected: np.ndarray, channel, space: str
) -> None:
    with Embedder.open(toy_artifact) as embedder:
        pixels = embedder.prepare(photo)[None]
    tensor = triton.InferInput("pixels", [1, 64, 64, 3], "UINT8")
    tensor.set_data_from_numpy(pixels)
    vector = client.infer("toy", [tensor]).as_numpy("embedding")[0]
    assert np.dot(vector, expected[photos.index(photo)]) > 0.999999
    typed = {
        "name": "pixels",
        "datatype": "UINT8",
        "shape": [1, 64, 64, 3],
        "contents": {"uint_contents": pixels.ravel()},
    }
    answer = call(channel, inputs=[typed])
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], "<f4"), vector)
    assert {entry.key: entry.value.string_param for entry in answer.parameters} == {
        "embedding_space": space,
        "precision": "fp32",
    }


def call(
    channel: grpc.Channel, raw: bytes | None = None, *, timeout: float = 20, metadata=(), compression=None, **fields
):
    message = MESSAGES["ModelInferRequest"](model_name=fields.pop("model_name", "toy"), **fields).SerializeToString()
    infer = channel.unary_unary(INFER, response_deserializer=MESSAGES["ModelInferResponse"].FromString)
    return infer(message if raw is None else raw, timeout=timeout, metadata=metadata, compression=compression)


def image(data: bytes) -> dict:
    return {"name": "image", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [data]}}


def test_health_and_metadata_answer_the_client(client, toy: Service, channel) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    about = client.get_model_metadata("toy", as_json=True)
    assert [tensor["name"] for tensor in about["inputs"]] == ["pixels", "image"]
    assert about["outputs"][0] == {"name": "embedding", "datatype": "FP32", "shape": ["-1", "16"]}
    assert client.get_server_metadata().name == "mimexport"
    check = channel.unary_unary(f"/{HEALTH}/Check", response_deserializer=MESSAGES["HealthCheckResponse"].FromString)
    assert check(b"", timeout=20).status == 1
    path = 'endpoint="/inference.GRPCInferenceService/ModelMetadata",method="POST",status="OK"'
    assert path in toy.call("/metrics").body.decode()


def test_configuration_and_statistics_are_those_of_http(client, toy: Service) -> None:
    config = json_format.MessageToDict(client.get_model_config("toy").config, preserving_proto_field_name=True)
    expected = toy.call("/v2/models/toy/config").json
    for tensor in expected["input"] + expected["output"]:
        tensor["dims"] = [str(dim) for dim in tensor["dims"]]  # int64 in JSON
    batching = expected["dynamic_batching"]
    batching["max_queue_delay_microseconds"] = str(batching["max_queue_delay_microseconds"])
    assert config == expected
    wait_until_idle(toy)
    for asked in ("toy", ""):
        (stats,) = client.get_inference_statistics(asked).model_stats
        told = toy.call("/v2/models/toy/stats").json["model_stats"][0]
        assert (stats.name, stats.inference_count) == ("toy", told["inference_count"])
        assert stats.inference_stats.queue.ns == told["inference_stats"]["queue"]["ns"]
        assert [run.compute_infer.count for run in stats.batch_stats] == [
            run["compute_infer"]["count"] for run in told["batch_stats"]
        ]


def test_errors_by_item(client, triton, photo: Path) -> None:
    answer = client.infer("toy", [files(triton, [b"none", photo.read_bytes()])], parameters={"errors": "item"})
    assert not answer.as_numpy("embedding")[0].any()
    assert answer.as_numpy("error")[0].startswith(b"image 0: ")
    assert answer.as_numpy("error")[1] == b""


@pytest.mark.parametrize("place", ["output", "request"])
def test_outputs_asked_for_in_json_come_as_bytes(
    channel, photo: Path, photos: list[Path], expected: np.ndarray, place: str
) -> None:
    """The protocol has no JSON over gRPC."""
    no, by_item = {"bool_param": False}, {"key": "errors", "value": {"string_param": "item"}}
    asked = [{"key": "binary_data", "value": no}] if place == "output" else []
    images = {"name": "image", "datatype": "BYTES", "shape": [2]}
    answer = call(
        channel,
        inputs=[images | {"contents": {"bytes_contents": [photo.read_bytes(), b"none"]}}],
        outputs=[{"name": "embedding", "parameters": asked}],
        parameters=[by_item, *([{"key": "binary_data_output", "value": no}] if place == "request" else [])],
    )
    vectors, errors = answer.raw_output_contents
    found = np.frombuffer(vectors, "<f4").reshape(2, 16)
    assert np.dot(found[0], expected[photos.index(photo)]) > 0.999999
    assert [output.name for output in answer.outputs] == ["embedding", "error"]
    assert b"image 1: " in errors


def test_each_refusal_has_its_code_and_text(channel, photo: Path, toy: Service) -> None:
    data = photo.read_bytes()
    many = {"name": "image", "datatype": "BYTES", "shape": [65], "contents": {"bytes_contents": [b"x"] * 65}}
    wide = {"name": "pixels", "datatype": "UINT8", "shape": [1, 1], "contents": {"uint_contents": [256]}}
    output = {"name": "embedding", "parameters": [{"key": "datatype", "value": {"string_param": "FP8"}}]}
    other, narrow = (("x-embedding-space", "f" * 16),), (("x-embedding-precision", "int8"),)
    for fields, code, text in (
        ({"model_name": "tey", "inputs": [image(data)]}, "NOT_FOUND", "did you mean toy"),
        ({"model_version": "2", "inputs": [image(data)]}, "NOT_FOUND", "has only version 1"),
        ({"inputs": [image(data[:500])]}, "INVALID_ARGUMENT", "image 0: 500 bytes: cannot be read"),
        ({"inputs": []}, "INVALID_ARGUMENT", "came 0 times; send them once"),
        ({"inputs": [image(data)], "raw_input_contents": [b""]}, "INVALID_ARGUMENT", "came 2 times"),
        ({"inputs": [image(data) | {"name": "x"}]}, "INVALID_ARGUMENT", "inputs[0].name"),
        ({"inputs": [image(data)], "outputs": [output]}, "INVALID_ARGUMENT", "the datatype 'FP8'; expected FP32"),
        ({"inputs": [many]}, "INVALID_ARGUMENT", "65 images in one request; at most 64"),
        ({"inputs": [wide]}, "INVALID_ARGUMENT", "uint_contents has 256; pixels are 0 to 255"),
        ({"inputs": [image(data)], "metadata": other}, "FAILED_PRECONDITION", "expected ffff"),
        ({"inputs": [image(data)], "metadata": narrow}, "FAILED_PRECONDITION", "computes in fp32, expected int8"),
    ):
        found = refused(lambda fields=fields: call(channel, **fields))
        assert (found[0], text in found[1]) == (code, True), (found, text)
    assert toy.call("/ready").status == 200


def test_what_no_client_of_good_will_sends_is_refused(channel, photo: Path, toy: Service) -> None:
    assert refused(lambda: call(channel, b"\xff" * 30))[0] == "INVALID_ARGUMENT"
    assert refused(lambda: call(channel, bytes(9_000_000)))[0] == "RESOURCE_EXHAUSTED"
    assert refused(lambda: call(channel, b"\x2a\x00" * 1_000_000)) == (
        "INVALID_ARGUMENT",
        "the message has over 192 fields, more than a request needs",
    )
    packed = refused(lambda: call(channel, inputs=[image(bytes(5_000_000))], compression=grpc.Compression.Gzip))
    assert packed[0] == "UNIMPLEMENTED"
    large = channel.unary_unary(f"/{SERVICE}/ModelMetadata")
    assert refused(lambda: large(bytes(5000), timeout=20)) == ("INVALID_ARGUMENT", "the message is over 4,096 bytes")
    assert refused(lambda: channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=20))[0] == "UNIMPLEMENTED"
    assert len(call(channel, inputs=[image(photo.read_bytes())]).raw_output_contents[0]) == 64


@pytest.mark.parametrize(
    ("path", "message", "status", "reason"),
    [
        (f"/{SERVICE}/Nothing", b"", "UNIMPLEMENTED", "method_not_found"),
        ("/other.Service/Call", bytes(9_000_000), "UNIMPLEMENTED", "method_not_found"),
        (INFER, bytes(9_000_000), "RESOURCE_EXHAUSTED", "no_message|cancelled"),
    ],
)
def test_what_is_refused_before_its_message_is_read_is_counted(
    channel, toy: Service, path: str, message: bytes, status: str, reason: str
) -> None:
    before = failures(toy, reason)
    assert refused(lambda: channel.unary_unary(path)(message, timeout=20))[0] == status
    assert failures(toy, reason) == before + 1
    assert "Nothing" not in toy.call("/metrics").body.decode()


def failures(service: Service, reason: str) -> float:
    """Failures of a reason, which is a pattern."""
    counted = re.findall(
        rf'mimexport_failures_total{{reason="(?:{reason})"}} (\S+)', service.call("/metrics").body.decode()
    )
    return sum(map(float, counted))


def test_health_is_answered_while_others_send_without_end(channel, toy: Service) -> None:
    def drip(ended: threading.Event) -> Iterator[bytes]:
        ended.wait()
        yield from ()

    ended = threading.Event()
    infer, live = channel.stream_unary(INFER), channel.unary_unary(f"/{SERVICE}/ServerLive")
    calls = [infer.future(drip(ended), timeout=60) for _ in range(100)]  # more than may be on their way at once
    assert live(bytes(1_000_000), timeout=20) == MESSAGES["ServerLiveResponse"](live=True).SerializeToString()
    ended.set()
    assert {each.code().name for each in calls} == {"INVALID_ARGUMENT"}  # "the call has no message"


def test_what_strangers_say_does_not_reach_the_log(toy: Service, channel) -> None:
    settings = b"\0\0\0\4\0\0\0\0\0"
    text = b"\x1b[2Jnot for the log"
    goaway = (8 + len(text)).to_bytes(3, "big") + b"\7\0\0\0\0\0" + bytes(7) + b"\2" + text
    ping = b"\0\0\x08\6\0\0\0\0\0" + b"answered"
    host, port = toy.grpc.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + goaway + ping)
        came = b""
        while b"answered" not in came and (more := connection.recv(4096)):
            came += more
    assert channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", timeout=20)
    assert "not for the log" not in toy.log.read_text()


def test_a_call_that_is_given_up_leaves_nothing_in_flight(channel, photo: Path, toy: Service) -> None:
    data = photo.read_bytes()
    images = {"name": "image", "datatype": "BYTES", "shape": [60], "contents": {"bytes_contents": [data] * 60}}
    assert refused(lambda: call(channel, inputs=[images], timeout=0.03))[0] == "DEADLINE_EXCEEDED"
    wait_until_idle(toy)


def wait_until_idle(service: Service) -> None:
    deadline = time.monotonic() + 20
    while service.metric("mimexport_images_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_hundred_calls_at_once_are_answered_or_told_to_wait(channel, photo: Path) -> None:
    message = MESSAGES["ModelInferRequest"](model_name="toy", inputs=[image(photo.read_bytes())]).SerializeToString()
    infer = channel.unary_unary(INFER)
    codes = [each.code().name for each in [infer.future(message, timeout=30) for _ in range(100)]]
    assert {*codes} <= {"OK", "RESOURCE_EXHAUSTED"}
    assert "OK" in codes


@pytest.fixture(scope="module")
def target(toy_artifact: Path, photos: list[Path]) -> Target:
    return read_target(toy_artifact, photos)


def test_correct_calls_among_hostile_ones_get_their_vectors(toy: Service, target: Target) -> None:
    answers, broken = over_grpc.attack(toy, target, 160)
    assert broken == []
    assert min(answers[kind] for kind in ("correct", "mutated", "given up", "garbage")) > 20


def test_the_adversary_sees_a_wrong_vector(toy: Service, target: Target) -> None:
    wrong = replace(target, vectors=[[0.0] * 16] * len(target.photos))
    assert "a vector differs by" in over_grpc.attack(toy, wrong, 10)[1][0]


def tag(number: int, content: bytes) -> bytes:
    """A field of bytes, below 16 in number."""
    length = bytearray()
    rest = len(content)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + content


@pytest.mark.parametrize(
    "message",
    [
        tag(5, b"") * 500_000,
        tag(5, tag(5, tag(8, b"") * 500_000)),
        tag(5, tag(4, b"") * 500_000),
        tag(6, tag(2, tag(2, b"")) * 200_000),
        tag(4, tag(2, b"\x08\x01" * 500_000)),
        tag(5, tag(5, tag(3, b"\x01" * 1_000_000))),
        tag(5, tag(5, b"\x20\x01" * 500_000)),
        tag(5, tag(5, tag(4, b"\x01" * 8_000_001))),
        tag(7, b"") * 500_000,
        b"\x0b" * 1_000_000,
        tag(5, b"x" * 10)[:-1],
        b"\xfa" + b"\xff" * 20,
    ],
)
def test_whatever_the_message_its_memory_is_bounded_by_its_size(message: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Problem):
            read_infer(message, 64)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
