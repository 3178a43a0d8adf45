"""Parse long bodies in their own thread, so that the event loop is not blocked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SHORT = 65_536
"""Any body of this size is parsed within a millisecond or two."""

# One thread: several would share the interpreter's lock, and the event loop would wait for all of them.
_PARSER = ThreadPoolExecutor(1, "mimexport-parse")


async def parse(work: Callable[Concatenate[bytes, P], T], body: bytes, *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `work(body, …)`, called in another thread if the body is long."""
    if len(body) <= SHORT:
        return work(body, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_PARSER, lambda: work(body, *args, **kwargs))
