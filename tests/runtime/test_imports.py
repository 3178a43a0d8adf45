"""The runtime is light: nothing of the torch side, and no engine before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mimruntime

ROOT = Path(mimruntime.__file__).parent
MODULES = sorted(
    ".".join(("mimruntime", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)
BANNED = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "mimexport",
    "mimeval",
    "pyarrow",
    "rich",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "onnxscript",
    "safetensors",
    "openvino",
    "ray",
    "fsspec",
    "matplotlib",
    "skimage",
    "sklearn",
    "scipy",
)
SERVING = ("fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart", "grpc", "google")

SCRIPT = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
print(*sorted({module.partition(".")[0] for module in sys.modules} & set(sys.argv[1].split(","))))
"""


def banned_after(*modules: str, banned: tuple[str, ...] = BANNED) -> list[str]:
    """Import `modules` in a fresh interpreter and return the banned packages that came with them."""
    command = [sys.executable, "-c", SCRIPT, ",".join(banned), *modules]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_no_module_of_the_runtime_brings_a_banned_package() -> None:
    assert "mimruntime.engines.onnxruntime" in MODULES
    assert len(MODULES) > 12
    assert banned_after(*MODULES) == []


def test_only_the_service_brings_the_packages_of_a_service() -> None:
    others = [name for name in MODULES if not name.startswith(("mimruntime.serve.", "mimruntime.browse."))]
    assert banned_after(*others, "mimruntime.cli.serve", banned=SERVING) == []


def test_the_guard_fails_on_a_planted_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text("import mimruntime.decode\nimport onnx\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT.parent}")
    assert banned_after("planted") == ["onnx"]


def test_importing_the_package_brings_neither_numpy_nor_pillow() -> None:
    script = "import sys, mimruntime; print(*{'numpy', 'PIL', 'click', 'msgspec'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_found() -> None:
    for name in mimruntime.__all__:
        assert getattr(mimruntime, name).__name__ == name
    assert set(mimruntime.__all__) <= set(dir(mimruntime))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        mimruntime.Nothing  # noqa: B018
