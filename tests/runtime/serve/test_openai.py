"""The stock OpenAI client, and the protocol's refusals in the shape it reads."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import openai
import pytest
from service import Service, data_uri

from mimruntime.serve.protocols.schemas import EXAMPLE_IMAGE


@pytest.fixture
def client(toy: Service) -> openai.OpenAI:
    with openai.OpenAI(base_url=f"{toy.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def worst_cosine(vectors: object, expected: np.ndarray) -> float:
    return float((np.asarray(vectors, np.float32) * expected).sum(axis=1).min())


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_the_stock_client_gets_the_vectors_of_the_embedder(
    client: openai.OpenAI, photos: list[Path], expected: np.ndarray, encoding: str
) -> None:
    answer = client.embeddings.create(model="toy", input=[data_uri(path) for path in photos], encoding_format=encoding)
    vectors = [
        np.frombuffer(base64.b64decode(item.embedding), "<f4") if encoding == "base64" else item.embedding
        for item in answer.data
    ]
    assert worst_cosine(vectors, expected) > 0.999999
    assert [item.index for item in answer.data] == list(range(8))
    assert answer.usage.prompt_tokens == 8 * 64


def test_the_client_default_and_one_uri_work_too(
    client: openai.OpenAI, photo: Path, photos: list[Path], expected: np.ndarray
) -> None:
    answer = client.embeddings.create(model="toy", input=data_uri(photo))
    assert worst_cosine([answer.data[0].embedding], expected[[photos.index(photo)]]) > 0.999999


def test_items_of_type_image_url_may_stand_between_uris(toy: Service, photos: list[Path], expected: np.ndarray) -> None:
    uris = [data_uri(path) for path in photos[:3]]
    items = [uris[0], {"type": "image_url", "image_url": {"url": uris[1]}}, uris[2]]
    answer = toy.call("/v1/embeddings", {"model": "toy", "input": items})
    assert worst_cosine([item["embedding"] for item in answer.json["data"]], expected[:3]) > 0.999999


def test_models_say_what_runs(client: openai.OpenAI, space: str) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.dim, model.embedding_space, model.provider) == ("toy", 16, space, "cpu")


def test_a_bad_image_is_named_and_spoils_nobody_else(client: openai.OpenAI, photo: Path) -> None:
    broken = "data:image/jpeg;base64," + base64.b64encode(photo.read_bytes()[:900]).decode()
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="toy", input=[data_uri(photo), broken])
    assert caught.value.param == "input[1]"
    assert caught.value.code == "image_undecodable"
    assert "image 1" in caught.value.message


def test_weights_of_patches_come_on_request(client: openai.OpenAI, photos: list[Path], weights: np.ndarray) -> None:
    images = [data_uri(path) for path in photos[:2]]
    answer = client.embeddings.create(model="toy", input=images, extra_body={"selection": True})
    np.testing.assert_allclose([item.selection for item in answer.data], weights[:2], atol=1e-6)
    assert not hasattr(client.embeddings.create(model="toy", input=images).data[0], "selection")


def test_errors_by_item_leave_the_others_their_vectors(
    client: openai.OpenAI, photos: list[Path], expected: np.ndarray
) -> None:
    broken = "data:image/jpeg;base64," + base64.b64encode(photos[0].read_bytes()[:900]).decode()
    images = [broken, data_uri(photos[1]), "https://example.org/a.jpg", "data:image/png;base64,@@", data_uri(photos[4])]
    answer = client.embeddings.create(model="toy", input=images, encoding_format="float", extra_body={"errors": "item"})
    assert [item.index for item in answer.data] == [1, 4]
    assert worst_cosine([item.embedding for item in answer.data], expected[[1, 4]]) > 0.999999
    found = {error["index"]: (error["code"], error["param"]) for error in answer.errors}
    undecodable = "image_undecodable"
    assert found == {0: (undecodable, "input[0]"), 2: ("image_url", "input[2]"), 3: (undecodable, "input[3]")}
    assert answer.usage.prompt_tokens == 2 * 64


def test_errors_by_item_of_a_request_of_wrong_images_alone(toy: Service) -> None:
    answer = toy.call("/v1/embeddings", {"model": "toy", "input": ["data:image/png;base64,@@"], "errors": "item"})
    assert (answer.status, answer.json["data"], len(answer.json["errors"])) == (200, [], 1)
    assert toy.call("/v1/embeddings", {"model": "toy", "input": [EXAMPLE_IMAGE], "errors": "item"}).json["errors"] == []
    assert toy.call("/v1/embeddings", {"model": "toy", "input": [EXAMPLE_IMAGE], "errors": "all"}).status == 422


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "tey"}, 404, "model_not_found"),
        ({"embedding_space": "0" * 16}, 409, "embedding_space_differs"),
        ({"dimensions": 8}, 400, "dimensions"),
        ({"input": "a cat"}, 422, "schema"),
        ({"input": []}, 422, "schema"),
        ({"input": "data:image/png;base64,@@@"}, 400, "image_undecodable"),
        ({"input": "data:image/png;base64,aGVsbG8="}, 415, "image_format"),
        ({"input": "https://example.org/cat.jpg"}, 400, "image_url"),
        ({"input": ["data:image/png;base64,AAAA"] * 65}, 413, "too_many_items"),
        ({"inputs": "misspelt"}, 422, "schema"),
    ],
)
def test_each_refusal_has_its_status_and_code(toy: Service, photo: Path, change: dict, status: int, code: str) -> None:
    answer = toy.call("/v1/embeddings", {"model": "toy", "input": data_uri(photo)} | change)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


BARE = EXAMPLE_IMAGE.partition(",")[2]


@pytest.mark.parametrize(
    ("given", "param", "text"),
    [
        ([], "input", 'input is an empty list; expected at least one image: ["data:image/jpeg;base64,/9j/4AAQ…"]'),
        ("a cat", "input", "input is the text 'a cat'; expected an image: 'data:image/jpeg;base64,/9j/4AAQ…'; texts"),
        (BARE, "input", "input is base64 without its type; write 'data:image/png;base64,' before 'iVBORw0KGgo"),
        ([EXAMPLE_IMAGE, BARE], "input[1]", "input[1] is base64 without its type"),
        (
            "data:application/pdf;base64,AAAA",
            "input",
            "is a data URI of type 'application/pdf'; expected one of an image",
        ),
        ("data:image/svg+xml,%3Csvg", "input", "is a data URI without ';base64,' after its type"),
        ("http://example.org/a.jpg", "input", "is a URL of 'http'; expected the image itself"),
        ("https://example.org/a.jpg", "input[0]", "image 0: is a URL, and this service fetches none; send the image"),
        ([7], "input[0]", "input[0] is 7; expected an image as a data URI: 'data:image/jpeg;base64,/9j/4AAQ…'; tokens"),
        ([[7, 8]], "input[0]", "input[0] is a list; expected an image"),
        ([{"image": BARE}], "input[0]", 'input[0] is an object with "image"; expected \'data:image/jpeg;base64'),
        ({"type": "image_url", "image_url": EXAMPLE_IMAGE}, "input.image_url", 'image_url": {"url": "data:image/jpeg'),
        ({"type": "text", "text": "a cat"}, "input.type", 'input is an object with "type", "text"; expected'),
        (
            [{"type": "image_url", "image_url": {"url": BARE}}],
            "input[0].image_url.url",
            "input[0].image_url.url is base64 without its type",
        ),
    ],
)
def test_what_is_no_image_is_named_with_what_to_write(toy: Service, given: object, param: str, text: str) -> None:
    error = toy.call("/v1/embeddings", {"model": "toy", "input": given}).json["error"]
    assert text in error["message"]
    assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 400, 'the body is empty; expected JSON: {"model": "NAME", "input": ["data:image/jpeg;base64'),
        (b"\xff\xd8\xff\xe0", 400, "the body is a file (JPEG); send files to /v1/embeddings/image, or here as JSON"),
        (b"--b\r\nContent", 400, "the body is a form; send forms to /v1/embeddings/image"),
        (b'{"input": "data:image/png;base64,AAAA"}', 422, 'missing required field `model`; expected {"model": "NAME"'),
        (
            b'{"model": "toy", "messages": [{"role": "user", "content": []}]}',
            422,
            'unknown field `messages`; expected {"model": "NAME", "input": ["data:image',
        ),
        (b'{"model": "toy", "input": [7], "input": []}', 422, "input"),
        (b'{"model": "toy", "input": [{"\\ud800": 7}]}', 400, "not JSON"),
    ],
)
def test_a_body_that_is_something_else_is_told_where_to_go(toy: Service, body: bytes, status: int, text: str) -> None:
    answer = toy.call("/v1/embeddings", body)
    assert (answer.status, text in answer.json["error"]["message"]) == (status, True), answer.json


def test_an_unknown_model_is_answered_with_the_nearest(toy: Service, photo: Path) -> None:
    answer = toy.call("/v1/embeddings", {"model": "tey", "input": data_uri(photo)})
    assert "did you mean toy" in answer.json["error"]["message"]


def test_a_body_that_is_no_json_is_malformed(toy: Service) -> None:
    answer = toy.call("/v1/embeddings", b"{", Content_Type="application/json")
    assert (answer.status, answer.json["error"]["code"]) == (400, "malformed")


@pytest.mark.parametrize("field", ["model", "embedding_space", "user", "input"])
def test_half_a_character_is_malformed(toy: Service, field: str) -> None:
    fields = {"model": "toy", "input": "data:image/png;base64,AAAA"} | {field: "\ud800"}
    assert toy.call("/v1/embeddings", fields).status in {400, 422}
