"""Vectors as an index stores them: cut, as float16, int8 or bits, by every protocol, with what reads them back."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from service import Service, data_uri, running

from mimruntime.storage import read_codec

SPACE = "b1eac4ed" * 2
TYPES = {"float": ("<f4", 1 - 1e-6), "float16": ("<f2", 1 - 1e-5), "int8": ("i1", 0.999), "ubinary": ("u1", 0.6)}


@pytest.fixture(scope="module")
def whitened(toy_whitened: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(toy_whitened, log=tmp_path_factory.mktemp("serve") / "log") as service:
        yield service


def cosines(read: np.ndarray, expected: np.ndarray) -> np.ndarray:
    cut = expected[:, : read.shape[1]]
    return (read * cut).sum(axis=1) / np.linalg.norm(cut, axis=1)


@pytest.mark.parametrize("dimensions", [None, 16, 10])
@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("kind", list(TYPES))
def test_the_stock_client_reads_back_what_it_asked_for(
    whitened: Service, photos: list[Path], expected: np.ndarray, kind: str, encoding: str, dimensions: int | None
) -> None:
    with openai.OpenAI(base_url=f"{whitened.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.embeddings.create(
            model="toy", input=[data_uri(path) for path in photos], encoding_format=encoding,
            dimensions=dimensions or openai.omit, extra_body={"output_dtype": kind},
        )  # fmt: skip
    dtype, least = TYPES[kind]
    codes = np.array(
        [
            np.frombuffer(base64.b64decode(item.embedding), dtype) if encoding == "base64" else item.embedding
            for item in answer.data
        ],
        dtype,
    )
    codec = read_codec(getattr(answer, "storage", {}), answer.embedding_space, codes.shape[1])
    assert codec.space == (f"{SPACE}/10" if dimensions == 10 else SPACE)
    assert codec.dim == (dimensions or 16)
    assert codes.shape == (8, codec.width)
    assert cosines(codec.decode(codes), expected).min() > least


def test_a_cut_space_is_another_space(whitened: Service, photo: Path) -> None:
    body = {"model": "toy", "input": data_uri(photo), "dimensions": 10}
    answer = whitened.call("/v1/embeddings", body | {"embedding_space": SPACE})
    assert (answer.status, answer.json["error"]["code"]) == (409, "embedding_space_differs")
    assert whitened.call("/v1/embeddings", body, X_Embedding_Space=SPACE).status == 409
    answer = whitened.call("/v1/embeddings", body, X_Embedding_Space=f"{SPACE}/10")
    assert (answer.status, answer.headers["X-Embedding-Space"]) == (200, f"{SPACE}/10")
    whole = {"model": "toy", "input": data_uri(photo)}
    assert whitened.call("/v1/embeddings", whole, X_Embedding_Space=f"{SPACE}/10").status == 409


def test_a_file_that_is_uploaded_too(whitened: Service, photo: Path, photos: list[Path], expected: np.ndarray) -> None:
    answer = whitened.call("/v1/embeddings/image?output_dtype=int8&dimensions=10", photo.read_bytes()).json
    codes = np.array([answer["data"][0]["embedding"]], np.int8)
    codec = read_codec(answer["storage"], answer["embedding_space"], 10)
    assert codec.space == f"{SPACE}/10"
    assert cosines(codec.decode(codes), expected[[photos.index(photo)]]).min() > 0.999


@pytest.mark.parametrize("datatype", ["FP32", "FP16", "INT8", "UINT8"])
def test_a_tensor_of_the_inference_protocol_too(
    whitened: Service, photos: list[Path], expected: np.ndarray, datatype: str
) -> None:
    dtype, least = dict(zip(("FP32", "FP16", "INT8", "UINT8"), TYPES.values(), strict=True))[datatype]
    texts = [base64.b64encode(path.read_bytes()).decode() for path in photos]
    parameters = {"datatype": datatype, "dimensions": 10, "binary_data": datatype != "UINT8"}
    answer = whitened.call(
        "/v2/models/toy/infer",
        {
            "inputs": [{"name": "image", "shape": [8], "datatype": "BYTES", "data": texts}],
            "outputs": [{"name": "embedding", "parameters": parameters}],
        },
    )
    length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.body)))
    said, raw = json.loads(answer.body[:length]), answer.body[length:]
    (tensor,) = said["outputs"]
    flat = np.frombuffer(raw, dtype) if raw else np.array(tensor["data"], dtype)
    codec = read_codec(said["parameters"], said["parameters"]["embedding_space"], 10)
    assert (tensor["datatype"], tensor["shape"], codec.space) == (datatype, [8, codec.width], f"{SPACE}/10")
    assert cosines(codec.decode(flat.reshape(8, -1)), expected).min() > least


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"datatype": "BF16"}, "outputs[0] has the datatype 'BF16'; expected FP32, FP16, INT8, UINT8"),
        ({"datatype": "FP16"}, "FP16 has no form in JSON; ask for it with binary_data"),
        ({"dimensions": True}, "outputs[0] has 'True' dimensions; expected a whole number"),
        ({"dimensions": 17}, "17 dimensions: vectors of 'toy' have 16; give 1 to 16"),
    ],
)
def test_what_the_inference_protocol_does_not_give_is_refused(whitened: Service, parameters: dict, text: str) -> None:
    inputs = [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}]
    asked = {"inputs": inputs, "outputs": [{"name": "embedding", "parameters": parameters}]}
    answer = whitened.call("/v2/models/toy/infer", asked)
    assert (answer.status, answer.json["error"]) == (400, text)
