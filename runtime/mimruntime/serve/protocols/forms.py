"""The files of a form (`multipart/form-data`), read from a body that is whole."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mimruntime.serve.problems import Problem

_MOST_BLANKS = 64


def read_files(body: bytes, content_type: str, max_items: int) -> list[bytes]:
    """Return what is in the parts with a filename, in order.

    Args:
        body: of the request.
        content_type: its header, with the boundary.
        max_items: files at most; there may be as many other fields.

    Raises:
        Problem: 400 no form or no file in it, 413 more parts.

    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _malformed("has no boundary")
    _check_delimiters(body, b"--" + boundary, max_items)
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise _malformed(f"cannot be read: {error}") from error
    if not form.files:
        raise _malformed("holds no file")
    return [b"".join(chunks) for chunks in form.files]


def _check_delimiters(body: bytes, delimiter: bytes, max_items: int) -> None:
    """Refuse what the parser would go through byte by byte: many delimiters, and blanks after one."""
    count, at = 0, body.find(delimiter)
    while at >= 0:
        count += 1
        if count > 2 * max_items + 1:
            raise Problem(413, "too_many_items", f"over {2 * max_items} parts in one form; at most {max_items} files")
        after = at + len(delimiter)
        if not body[after : after + _MOST_BLANKS].strip(b" \t") and after + _MOST_BLANKS <= len(body):
            raise _malformed("has blanks after a boundary")
        at = body.find(delimiter, after)


class _Form:
    """What the parser has told so far; its size is that of the files."""

    def __init__(self) -> None:
        self.files: list[list[bytes]] = []
        self._field = b""
        self._value = b""
        self._disposition = b""
        self._in_file = False

    def callbacks(self) -> dict[str, object]:
        """Return what the parser calls, by its names."""
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
        self._in_file = b"filename" in parse_options_header(self._disposition)[1]
        if self._in_file:
            self.files.append([])

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self.files[-1].append(data[start:end])


def _malformed(reason: str) -> Problem:
    return Problem(400, "malformed", f"the form {reason}", param="file")
