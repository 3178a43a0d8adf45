"""Read the files of a form (`multipart/form-data`) and the model it names from a complete body."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mimruntime.serve.problems import Problem

_MOST_BLANKS = 64
_MOST_NAME = 256
"""Largest length of a model's name in bytes."""
_IN_THE_URL = frozenset({"encoding_format", "output_dtype", "dimensions", "selection", "errors", "embedding_space"})
"""Options that are read from the URL only, not from a form."""


@dataclass(frozen=True, slots=True)
class Form:
    """The content of a form: its files in order, and the field `model`, None if missing."""

    files: list[bytes]
    model: str | None


def read_form(body: bytes, content_type: str, max_items: int) -> Form:
    """Return the parts with a filename, in order, and the field `model`.

    Args:
        body: the request's body.
        content_type: its Content-Type, with the boundary.
        max_items: largest number of files; as many other fields are allowed.

    Raises:
        Problem: 400 if it is not a form, has no file, or has an option that belongs into the URL; 413 if it has more parts.

    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _malformed("has no boundary")
    _check_delimiters(body, b"--" + boundary, max_items)
    form = _Parts()
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _malformed(f"cannot be read: {error}") from error
    if not form.files:
        raise _malformed("holds no file; expected a part with a filename, as of: curl -F file=@cat.jpg")
    if form.misplaced:
        name = form.misplaced
        raise _malformed(f"has the field '{name}', which is read from the URL only: ?{name}=…", param=name)
    model = b"".join(form.model)
    if len(model) > _MOST_NAME:
        raise _malformed(f"has a field 'model' of over {_MOST_NAME} bytes", param="model")
    return Form([b"".join(chunks) for chunks in form.files], model.decode(errors="replace").strip() or None)


def _check_delimiters(body: bytes, delimiter: bytes, max_items: int) -> None:
    """Refuse bodies that the parser would read byte by byte: many delimiters, or blanks after one."""
    count, at = 0, body.find(delimiter)
    while at >= 0:
        count += 1
        if count > 2 * max_items + 1:
            raise Problem(413, "too_many_items", f"over {2 * max_items} parts in one form; at most {max_items} files")
        after = at + len(delimiter)
        if not body[after : after + _MOST_BLANKS].strip(b" \t") and after + _MOST_BLANKS <= len(body):
            raise _malformed("has blanks after a boundary")
        at = body.find(delimiter, after)


class _Parts:
    """Collect the parser's events; memory is bounded by the size of the files."""

    def __init__(self) -> None:
        self.files: list[list[bytes]] = []
        self.model: list[bytes] = []
        self.misplaced = ""
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._into: list[bytes] | None = None

    def callbacks(self) -> dict[str, object]:
        """Return the parser's callbacks by name."""
        names = ("part_begin", "header_field", "header_value", "header_end", "headers_finished", "part_data")
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self._disposition = b""

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field = self._value = b""

    def headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode(errors="replace")
        self._into = None
        if b"filename" in options:
            self._into = []
            self.files.append(self._into)
        elif name == "model":
            self._into = self.model
        elif name in _IN_THE_URL:
            self.misplaced = name

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._into is not None:
            self._into.append(data[start:end])


def _malformed(reason: str, param: str = "file") -> Problem:
    return Problem(400, "malformed", f"the form {reason}", param=param)
