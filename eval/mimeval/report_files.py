"""Write a report as JSON, Markdown and an HTML page."""

from __future__ import annotations

import contextlib
from pathlib import Path

from mimeval.markdown import as_markdown
from mimeval.page import as_page
from mimeval.report import Report, encode
from mimruntime.errors import OutputError
from mimruntime.writing import staged_file


def write_reports(report: Report, stem: Path) -> str:
    """Write STEM.json, STEM.md and STEM.html, and return the Markdown.

    Old files are replaced after all new ones are written, so that a full disk leaves the old ones.

    Args:
        report: the report of an evaluation.
        stem: path without its suffix.

    Raises:
        OutputError: a file cannot be written.

    """
    text = as_markdown(report)
    parts = {".json": encode(report), ".md": text.encode(), ".html": as_page(report).encode()}
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:  # write all files before the first replaces an old one
            for suffix, raw in parts.items():
                stream = stack.enter_context(staged_file(stem.with_name(stem.name + suffix)))
                stream.write(raw)
                stream.flush()
    except OSError as error:
        raise OutputError(f"cannot write the report {stem}: {error.strerror or error}") from error
    return text
