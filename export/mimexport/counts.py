"""Counts and shares of patches, as an option gives them."""

from __future__ import annotations

import math

from mimruntime.errors import OptionError


def parse_count(option: str, text: str, patches: int) -> int:
    """Return the number of patches that "49" or "50%" means of `patches`.

    Raises:
        OptionError: not a number, below 1 or above the number of patches; the line names `option`.

    """
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if text.endswith("%"):
        value = round(patches * value / 100) if 0 <= value <= 100 else math.nan
    # Written so that NaN, which compares false with everything, is refused.
    if not (1 <= value <= patches and value == int(value)):
        raise OptionError(f"{option} {text}: expected a count from 1 to {patches} or a share such as 50%")
    return int(value)
