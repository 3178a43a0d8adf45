"""`curl` sends files as they are or in a form."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from service import Service

from mimruntime.serve.admission.queue import EmbeddingResult
from mimruntime.serve.protocols.answers import timing
from mimruntime.serve.protocols.schemas import EXAMPLE_IMAGE

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(*arguments: object) -> dict:
    command = ["curl", "--silent", "--show-error", "--max-time", "30", *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def test_the_bytes_of_a_file_are_enough(toy: Service, photos: list[Path], expected: np.ndarray) -> None:
    for path, vector in zip(photos, expected, strict=True):
        answer = curl("--data-binary", f"@{path}", f"{toy.url}/v1/embeddings/image")
        assert np.dot(answer["data"][0]["embedding"], vector) > 0.999999


def test_a_form_carries_several_files_in_order(toy: Service, photos: list[Path], expected: np.ndarray) -> None:
    files = [argument for path in photos for argument in ("-F", f"file=@{path}")]
    answer = curl(*files, f"{toy.url}/v1/embeddings/image?model=toy")
    vectors = np.array([item["embedding"] for item in answer["data"]])
    assert (vectors * expected).sum(axis=1).min() > 0.999999
    assert answer["model"] == "toy"


def test_a_form_may_name_the_model_and_no_other_option(toy: Service, photo: Path) -> None:
    ask = lambda field, query="": curl("-F", f"file=@{photo}", "-F", field, f"{toy.url}/v1/embeddings/image{query}")  # noqa: E731
    assert ask("model=toy", "?model=toy")["model"] == "toy"
    assert "unknown model 'tey'; did you mean toy" in ask("model=tey")["error"]["message"]
    assert "the URL and the form name different models" in ask("model=tey", "?model=toy")["error"]["message"]
    assert "over 256 bytes" in ask(f"model={'x' * 257}")["error"]["message"]
    assert "the field 'dimensions', which is read from the URL only: ?dim" in ask("dimensions=8")["error"]["message"]


def test_weights_of_patches_come_with_files_too(toy: Service, photos: list[Path], weights: np.ndarray) -> None:
    answer = toy.call("/v1/embeddings/image?selection=true", photos[2].read_bytes()).json
    np.testing.assert_allclose(answer["data"][0]["selection"], weights[2], atol=1e-6)


def test_a_form_may_ask_for_errors_by_item(toy: Service, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no image")
    files = ["-F", f"file=@{tmp_path / 'no.jpg'}", "-F", f"file=@{photo}"]
    answer = curl(*files, f"{toy.url}/v1/embeddings/image?errors=item")
    assert [item["index"] for item in answer["data"]] == [1]
    assert [(error["index"], error["code"]) for error in answer["errors"]] == [(0, "image_format")]
    assert curl(*files, f"{toy.url}/v1/embeddings/image")["error"]["param"] == "file[0]"


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        (
            "",
            b"--b\r\nContent-Disposition: form-data",
            "is a form, and Content-Type is missing; expected 'multipart/form",
        ),
        ("text/plain", b"--b\r\nContent-Disp", "is a form, and Content-Type is 'text/plain'"),
        ("application/json", b'{"input": []}', "the body is JSON; send JSON to /v1/embeddings, and here the bytes of"),
        ("", b"data:image/png;base64,iVBORw0KG", "the body is base64; send the bytes themselves, or JSON to /v1/emb"),
        ("image/jpeg", b"/9j/4AAQSkZJRg", "the body is base64; send the bytes themselves"),
        ("", b"", "the body is empty; send the bytes of an image: curl --data-binary @cat.jpg"),
    ],
)
def test_a_body_that_is_no_file_is_told_what_it_is(toy: Service, kind: str, body: bytes, text: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", toy.port, timeout=20)
    with contextlib.closing(connection):  # urllib would add a Content-Type
        connection.request("POST", "/v1/embeddings/image", body, {"Content-Type": kind} if kind else {})
        answer = connection.getresponse()
        assert (answer.status, text in (said := answer.read().decode())) == (400, True), said


def test_times_are_those_of_the_slowest_image_in_milliseconds() -> None:
    vector = np.zeros(4, np.float32)
    results = [
        EmbeddingResult(vector, decode_s=0.004, queue_s=0.5, inference_s=1),
        EmbeddingResult(vector, 0.002, 0.25, 2),
    ]
    assert timing(results) == {"Server-Timing": "decode;dur=4.000, queue;dur=500.000, inference;dur=2000.000"}


def test_every_answer_carries_id_space_precision_and_times(toy: Service, photo: Path, space: str) -> None:
    answer = toy.call("/v1/embeddings/image", photo.read_bytes(), X_Request_Id="my-id.7")
    assert answer.headers["X-Request-Id"] == "my-id.7"
    assert answer.headers["X-Embedding-Space"] == answer.json["embedding_space"] == space
    assert answer.headers["X-Embedding-Precision"] == answer.json["precision"] == "fp32"
    assert [part.split(";")[0] for part in answer.headers["Server-Timing"].split(", ")] == [
        "decode",
        "queue",
        "inference",
    ]
    other = toy.call("/nowhere", X_Request_Id="bad id\t")
    assert other.headers["X-Request-Id"] != "bad id\t"
    assert other.headers["X-Embedding-Space"] == space
    assert other.headers["X-Embedding-Precision"] == "fp32"


def test_a_request_may_state_the_space_it_expects(toy: Service, photo: Path, space: str) -> None:
    call = lambda expected: toy.call("/v1/embeddings/image", photo.read_bytes(), X_Embedding_Space=expected)  # noqa: E731
    assert call(space).status == 200
    assert call("f" * 16).status == 409
    assert call("f" * 16).headers["X-Embedding-Space"] == space


def test_a_request_may_state_the_precision_it_expects(toy: Service, photo: Path, space: str) -> None:
    for path, body in (
        ("/v1/embeddings/image", photo.read_bytes()),
        ("/v1/embeddings", {"model": "toy", "input": EXAMPLE_IMAGE}),
    ):
        assert toy.call(path, body, X_Embedding_Space=space, X_Embedding_Precision="fp32").status == 200
        other = toy.call(path, body, X_Embedding_Space=space, X_Embedding_Precision="int8")
        assert (other.status, other.json["error"]["code"]) == (409, "precision_differs")
        assert other.json["error"]["message"] == "model 'toy' computes in fp32, expected int8"
        assert other.headers["X-Embedding-Precision"] == "fp32"
        assert toy.call(path, body, X_Embedding_Precision="fp12").status == 422


def test_a_form_may_name_a_charset_that_does_not_exist(toy: Service, photo: Path) -> None:
    fields = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"',
        photo.read_bytes() + b"\r\n--b--\r\n",
    )
    kind = "multipart/form-data; charset=undefined; boundary=b"
    assert toy.call("/v1/embeddings/image", b"\r\n\r\n".join(fields), Content_Type=kind).status == 200


@pytest.mark.parametrize("headers", [{}, {"Content_Type": "multipart/form-data; boundary=b"}])
def test_an_empty_body_is_malformed(toy: Service, headers: dict[str, str]) -> None:
    answer = toy.call("/v1/embeddings/image", b"--b--\r\n" if headers else b"", **headers)
    assert (answer.status, answer.json["error"]["param"]) == (400, "file")
