"""What has a part in a build: versions for the manifest, and one digest that changes with any of it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from functools import cache
from pathlib import Path

from mimruntime.manifest import SCHEMA

_TOOLS = ("mimexport", "torch", "timm", "onnx", "onnxscript", "onnxruntime")


def tool_versions() -> dict[str, str]:
    """Return the versions of what has a part in a build, by distribution."""
    return {tool: importlib.metadata.version(tool) for tool in _TOOLS if _is_installed(tool)}


@cache
def code_digest(*, heads: bool = True) -> str:
    """Return a digest of this package and of the tools it builds with: what is kept must not hide a change of them.

    Args:
        heads: whether the weights and heads in the package count; tokens of a backbone do not depend on heads.
    """
    digest = hashlib.sha256(f"{tool_versions()} {SCHEMA}".encode())
    root = Path(__file__).parent
    kinds = {".py", ".safetensors"} if heads else {".py"}
    for path in sorted(path for path in root.rglob("*") if path.suffix in kinds):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _is_installed(tool: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(tool))
    return False
