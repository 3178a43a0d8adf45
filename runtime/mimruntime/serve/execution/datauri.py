"""Decode base64 and data URIs, which carry images in JSON."""

from __future__ import annotations

import binascii

from mimruntime.errors import ImageError

PATTERN = r"^data:image/[a-zA-Z0-9.+-]+;base64,"
"""The start of a data URI of an image."""


def decode_base64(text: str) -> bytes:
    """Return the bytes of standard base64, or of a data URI that holds it.

    Raises:
        ImageError: any character outside the alphabet, or wrong padding.

    """
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:
        raise ImageError(f"is not base64: {error}") from error
