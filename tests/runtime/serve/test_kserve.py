"""The stock Triton client, in JSON and binary tensors."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from service import Service

from mimruntime import Embedder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def triton():
    return pytest.importorskip("tritonclient.http")


@pytest.fixture(scope="module")
def photo_pixels(toy_artifact: Path, photos: list[Path]) -> np.ndarray:
    with Embedder.open(toy_artifact) as embedder:
        return np.stack([embedder.prepare(path) for path in photos])


@pytest.fixture
def client(toy: Service, triton):
    with triton.InferenceServerClient(f"127.0.0.1:{toy.port}") as client:
        yield client


@pytest.mark.parametrize("binary_out", [True, False])
def test_encoded_files_as_bytes(client, triton, photos: list[Path], expected: np.ndarray, binary_out: bool) -> None:
    files = np.array([path.read_bytes() for path in photos], object)
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(files)
    output = triton.InferRequestedOutput("embedding", binary_data=binary_out)
    vectors = client.infer("toy", [tensor], outputs=[output]).as_numpy("embedding")
    assert vectors.dtype == np.float32
    assert (vectors * expected).sum(axis=1).min() > 0.999999


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_as_the_graph_takes_them(
    client, triton, photo_pixels: np.ndarray, expected: np.ndarray, binary: bool
) -> None:
    pixels = photo_pixels
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    answer = client.infer("toy", [tensor], request_id="seven")
    assert (answer.as_numpy("embedding") * expected).sum(axis=1).min() > 0.999999
    assert answer.get_response()["id"] == "seven"


@pytest.mark.parametrize("binary", [(True, True), (True, False), (False, False)])
def test_each_output_comes_as_it_is_asked_for(
    client, triton, photos: list[Path], expected: np.ndarray, weights: np.ndarray, binary: tuple[bool, bool]
) -> None:
    tensor = triton.InferInput("image", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([path.read_bytes() for path in photos[:2]], object))
    outputs = [
        triton.InferRequestedOutput(name, binary_data=b)
        for name, b in zip(("selection", "embedding"), binary, strict=True)
    ]
    answer = client.infer("toy", [tensor], outputs=outputs)
    np.testing.assert_allclose(answer.as_numpy("selection"), weights[:2], atol=1e-6)
    np.testing.assert_allclose(answer.as_numpy("embedding"), expected[:2], atol=1e-5)


def test_the_client_reads_configuration_and_statistics(client, triton, photo: Path) -> None:
    config = client.get_model_config("toy")
    assert (config["name"], config["max_batch_size"]) == ("toy", 64)
    types = {tensor["name"]: (tensor["data_type"], tensor["dims"]) for tensor in config["input"] + config["output"]}
    assert types["pixels"] == ("TYPE_UINT8", [64, 64, 3])
    assert types["image"] == ("TYPE_STRING", [1])
    assert types["embedding"] == ("TYPE_FP32", [16])
    from google.protobuf.json_format import ParseDict
    from tritonclient.grpc import model_config_pb2, service_pb2

    assert ParseDict(config, model_config_pb2.ModelConfig()).dynamic_batching.preferred_batch_size == [16, 8, 4, 2, 1]
    (before,) = client.get_inference_statistics("toy")["model_stats"]
    tensor = triton.InferInput("image", [3], "BYTES")
    tensor.set_data_from_numpy(np.array([photo.read_bytes()] * 3, object))
    client.infer("toy", [tensor])
    tensor.set_data_from_numpy(np.array([b"no image"] * 3, object))
    with pytest.raises(triton.InferenceServerException):
        client.infer("toy", [tensor])
    found = client.get_inference_statistics("toy")
    ParseDict(found, service_pb2.ModelStatisticsResponse())
    (after,) = found["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] > before["execution_count"]
    assert after["execution_count"] == sum(run["compute_infer"]["count"] for run in after["batch_stats"])
    of = lambda stats, name: stats["inference_stats"][name]["count"]  # noqa: E731
    assert [of(after, name) - of(before, name) for name in ("success", "fail", "queue")] == [1, 1, 1]
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]


@pytest.mark.parametrize("binary_out", [True, False])
def test_errors_by_item_are_an_output(
    client, triton, photos: list[Path], expected: np.ndarray, binary_out: bool
) -> None:
    tensor = triton.InferInput("image", [3], "BYTES")
    tensor.set_data_from_numpy(np.array([photos[0].read_bytes(), b"none", photos[1].read_bytes()[:500]], object))
    output = triton.InferRequestedOutput("embedding", binary_data=binary_out)
    answer = client.infer("toy", [tensor], outputs=[output], parameters={"errors": "item"})
    vectors, errors = answer.as_numpy("embedding"), answer.as_numpy("error")
    assert np.dot(vectors[0], expected[0]) > 0.999999
    assert not vectors[1:].any()
    texts = [error if isinstance(error, str) else error.decode() for error in errors]
    assert texts[0] == ""
    assert all(text.startswith(f"image {index}: ") for index, text in enumerate(texts) if index)


def test_base64_stands_for_bytes_in_json(toy: Service, photo: Path, photos: list[Path], expected: np.ndarray) -> None:
    text = base64.b64encode(photo.read_bytes()).decode()
    answer = toy.call(
        "/v2/models/toy/infer", {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}]}
    )
    (output,) = answer.json["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("embedding", "FP32", [1, 16])
    assert np.dot(output["data"], expected[photos.index(photo)]) > 0.999999


def test_health_and_metadata_answer_the_client(client, space: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert not client.is_model_ready("tey")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    about = client.get_model_metadata("toy")
    assert [tensor["name"] for tensor in about["inputs"]] == ["pixels", "image"]
    assert about["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, 16]},
        {"name": "selection", "datatype": "FP32", "shape": [-1, 8, 8]},
    ]
    assert about["parameters"] == {"embedding_space": space, "precision": "fp32"}


def test_the_client_reads_the_refusal(client, triton, photo: Path) -> None:
    from tritonclient.utils import InferenceServerException

    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([photo.read_bytes()[:500]], object))
    with pytest.raises(InferenceServerException, match=r"\[400\] image 0: 500 bytes: cannot be read"):
        client.infer("toy", [tensor])


def tensor(**change: object) -> dict:
    return {"name": "pixels", "shape": [1, 64, 64, 3], "datatype": "UINT8", "data": [0]} | change


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        ({"inputs": []}, 422, "inputs: Expected `array` of length 1"),
        ({"inputs": [tensor(name="x")]}, 422, r"inputs\[0\].name: Expected `str` matching regex .*\(pixels\|image\)"),
        (
            {"inputs": [tensor()], "outputs": [{"name": "y"}]},
            422,
            r"outputs\[0\].name: Expected `str` matching regex .*embedding",
        ),
        ({"inputs": [tensor(shape=[1, 63, 64, 3])]}, 400, r"expected UINT8 \[B, 64, 64, 3\]"),
        ({"inputs": [tensor()]}, 400, "of shape"),
        ({"inputs": [tensor(data=["a"] * 64 * 64 * 3)]}, 400, "Expected `int`, got `str`"),
        ({"inputs": [tensor(data=[0.5] * 64 * 64 * 3)]}, 400, "Expected `int`, got `float`"),
        ({"inputs": [tensor(data=[True] * 64 * 64 * 3)]}, 400, "Expected `int`, got `bool`"),
        ({"inputs": [tensor(data=[256] * 64 * 64 * 3)]}, 400, "Expected `int` <= 255"),
        ({"inputs": [tensor(name="image", datatype="BYTES", shape=[0], data=[])]}, 400, "holds no image"),
        (
            {"inputs": [tensor(name="image", datatype="BYTES", shape=[1], data=[7])]},
            422,
            "Expected `str | array`, got `int`",
        ),
        ({"inputs": [tensor(shape=[])]}, 422, r"inputs\[0\].shape: Expected `array` of length >= 1"),
        ({"inputs": [tensor()], "parameters": {"embedding_space": "x"}}, 409, "expected x"),
        (
            {"inputs": [tensor()], "parameters": {"errors": "all"}},
            400,
            "'errors' is 'all'; expected 'request' or 'item'",
        ),
        ({"inputs": [tensor()], "outputs": [{"name": "embedding"}] * 2}, 400, "requested twice: embedding, embedding"),
    ],
)
def test_each_refusal_has_its_status_and_reason(toy: Service, request_: dict, status: int, text: str) -> None:
    answer = toy.call("/v2/models/toy/infer", request_)
    assert answer.status == status
    assert isinstance(answer.json["error"], str)
    assert re.search(text, answer.json["error"])


@pytest.mark.parametrize(
    ("size", "tail", "length", "text"),
    [
        (8, b"1234", None, "binary_data_size is 8, 4 bytes follow"),
        (4, b"\xff\xff\xff\xff", None, "ends inside an element"),
        (2, b"ab", None, "ends inside a length"),
        (4, b"1234", "9999", "Inference-Header-Content-Length is '9999'"),
        (4, b"1234", "-1", "Inference-Header-Content-Length is '-1'"),
        (4, b"1234", "1" * 5000, "Inference-Header-Content-Length is '1111"),
    ],
)
def test_binary_tensors_that_do_not_add_up_are_refused(
    toy: Service, size: int, tail: bytes, length: str | None, text: str
) -> None:
    parameters = {"binary_data_size": size}
    head = json.dumps(
        {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": parameters}]}
    ).encode()
    answer = toy.call("/v2/models/toy/infer", head + tail, Inference_Header_Content_Length=length or str(len(head)))
    assert answer.status == 400
    assert text in answer.json["error"]
