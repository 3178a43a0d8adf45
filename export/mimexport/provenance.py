"""Versions of the tools that a build uses, and one digest of these and this package's code."""

from __future__ import annotations

import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

from mimruntime.installed import is_installed
from mimruntime.manifest import SCHEMA

_TOOLS = ("mimexport", "torch", "timm", "onnx", "onnxscript", "onnxruntime")


def tool_versions() -> dict[str, str]:
    """Return the versions of the tools that a build uses, by distribution name."""
    return {tool: importlib.metadata.version(tool) for tool in _TOOLS if is_installed(tool)}


@cache
def code_digest(*, heads: bool = True) -> str:
    """Return a digest of this package and its tools, as a cache key: results of other code are not reused.

    Args:
        heads: whether to include the weights and heads in the package; tokens of a backbone do not depend on them.
    """
    digest = hashlib.sha256(f"{tool_versions()} {SCHEMA}".encode())
    root = Path(__file__).parent
    kinds = {".py", ".safetensors"} if heads else {".py"}
    for path in sorted(path for path in root.rglob("*") if path.suffix in kinds):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
