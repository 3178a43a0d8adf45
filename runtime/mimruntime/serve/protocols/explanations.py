"""Say in words what a request has in place of an image, and how to send an image; the cost is bounded for any input."""

from __future__ import annotations

import json
import re

import msgspec
from msgspec import Raw

from mimruntime.serve.problems import Problem

BODY = '{"model": "NAME", "input": ["data:image/jpeg;base64,/9j/4AAQ…"]}'
_URI = "'data:image/jpeg;base64,/9j/4AAQ…'"
_ITEM = '{"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/4AAQ…"}}'
_FILES = "/v1/embeddings/image"
_SHOWN = 40
"""Characters of the client's text that are shown."""
_LOOKED_AT = 200
"""Bytes of the client's text that are examined."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\\]{40,}={0,2}")
_BEGINNINGS = {"/9j/": "jpeg", "iVBOR": "png", "UklGR": "webp", "R0lGOD": "gif", "Qk": "bmp"}
"""The first characters of each format in base64."""
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP"}


def explain_input(problem: Problem, given: Raw) -> Problem:
    """Return `problem`, which concerns `input` or the whole body, with an explanation in words.

    Args:
        problem: the problem that the decoder found.
        given: the field `input` as JSON, ASCII, of few commas; empty where it is missing.

    """
    where = problem.param or ""
    index = re.match(r"input\[(\d+)\]", where)
    text = _begin(given)
    if not where or not text:
        return _renewed(problem, f"{problem.detail}; expected {BODY}")
    if not where.startswith("input"):
        return problem
    if text.startswith("[") and text[1:].lstrip().startswith("]"):
        return _renewed(problem, f"input is an empty list; expected at least one image: [{_URI}]".replace("'", '"'))
    try:
        item = msgspec.json.decode(given, type=list[Raw])[int(index[1])] if index else given
        return _renewed(problem, _explain_item(index[0] if index else "input", item))
    except (LookupError, RecursionError, msgspec.MsgspecError):  # the field came twice, or has a lone surrogate
        return problem


def explain_no_json(body: bytes) -> str | None:
    """Say what a body is that is not JSON, and where to send it; None if unknown."""
    if not body.strip():
        return f"the body is empty; expected JSON: {BODY}"
    if body.startswith(b"--"):
        return f"the body is a form; send forms to {_FILES}"
    for magic, name in _MAGIC.items():
        if body.startswith(magic):
            return f"the body is a file ({name}); send files to {_FILES}, or here as JSON: {BODY}"
    return None


def explain_no_file(body: bytes, content_type: str) -> str | None:
    """Say what a body is that is not an image file; None if it may be one."""
    begin = body[:_LOOKED_AT].lstrip()
    if not begin:
        return f"the body is empty; send the bytes of an image: curl --data-binary @cat.jpg URL{_FILES}"
    if begin.startswith(b"--"):
        came = f"is '{content_type[:_SHOWN]}'" if content_type else "is missing"
        return f"the body is a form, and Content-Type {came}; expected 'multipart/form-data; boundary=…', as curl -F sends it"
    if begin.startswith((b"{", b"[")):
        return (
            "the body is JSON; send JSON to /v1/embeddings, and here the bytes of an image: curl --data-binary @cat.jpg"
        )
    if begin.startswith((b"data:", *(beginning.encode() for beginning in _BEGINNINGS if len(beginning) > 2))):
        return f"the body is base64; send the bytes themselves, or JSON to /v1/embeddings: {BODY}"
    return None


def _explain_item(at: str, item: Raw) -> str:
    text = _begin(item)
    if text.startswith('"'):
        return _explain_text(at, text[1:].removesuffix('"').replace("\\/", "/"))
    if text.startswith("{"):
        return _explain_object(at, item)
    what = "a list" if text.startswith("[") else f"{text[:_SHOWN]}"
    return f"{at} is {what}; expected an image as a data URI: {_URI}; tokens are not embedded"


def _explain_text(at: str, text: str) -> str:
    shown = text[:_SHOWN] + "…" if len(text) > _SHOWN else text
    kind = re.match(r"data:([^;,]*)", text)
    if kind and kind[1].startswith("image/"):
        return f"{at} is a data URI without ';base64,' after its type; expected {_URI}"
    if kind:
        return f"{at} is a data URI of type '{kind[1][:_SHOWN]}'; expected one of an image: {_URI}"
    if scheme := re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", text):
        return f"{at} is a URL of '{scheme[1][:_SHOWN]}'; expected the image itself: {_URI}; only https is ever fetched"
    if _BASE64.match(text):
        found = (kind for beginning, kind in _BEGINNINGS.items() if text.startswith(beginning))
        return f"{at} is base64 without its type; write 'data:image/{next(found, 'jpeg')};base64,' before '{shown}'"
    return f"{at} is the text '{shown}'; expected an image: {_URI}; texts and paths are not embedded"


def _explain_object(at: str, item: Raw) -> str:
    fields = msgspec.json.decode(item, type=dict[str, Raw])
    if fields.keys() == {"type", "image_url"} and _begin(fields["type"]) == '"image_url"':
        inner = fields["image_url"]
        url = msgspec.json.decode(inner, type=dict[str, Raw]).get("url") if _begin(inner).startswith("{") else None
        if url is not None:
            return _explain_item(f"{at}.image_url.url", url)
    names = ", ".join(json.dumps(name[:_SHOWN]) for name in list(fields)[:5]) or "no field"
    return f"{at} is an object with {names}; expected {_URI} or {_ITEM}"


def _begin(value: Raw) -> str:
    return bytes(memoryview(value)[:_LOOKED_AT]).decode("ascii", "replace").strip()


def _renewed(problem: Problem, message: str) -> Problem:
    return Problem(problem.status_code, problem.code, message, param=problem.param)
