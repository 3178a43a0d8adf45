"""A CPU can pass for a plain one, without bf16, VNNI and AMX: in our decisions and in the libraries that follow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mimruntime import cpus
from mimruntime.engines import openvino_model
from mimruntime.errors import OptionError

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).parents[2]
FLAGS = "flags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8 avx_vnni\n"
PRODUCTS = """
import numpy as np, openvino, torch
from openvino import opset13 as op

def number(value):
    return op.constant(np.float32(value))

given = op.parameter([8, 256], np.float32)
levels = op.fake_quantize(given, number(-1), number(127 / 128), number(-1), number(127 / 128), 256)
weights = op.multiply(op.convert(op.constant(np.ones((256, 256), np.int8)), "f32"), number(1 / 64))
model = openvino.Model([op.relu(op.matmul(levels, weights, False, True))], [given])
openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({0: np.ones((8, 256), np.float32)})
torch.nn.functional.linear(torch.ones(64, 64).bfloat16(), torch.ones(64, 64).bfloat16())
"""


@pytest.fixture
def info(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(FLAGS)
    return path


def test_a_plain_cpu_has_neither_bf16_nor_vnni_nor_amx(info: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIMEXPORT_CPU", raising=False)
    assert "avx512_bf16" in cpus.cpu_instructions(info)
    monkeypatch.setenv("MIMEXPORT_CPU", "plain")
    assert cpus.cpu_instructions(info) == ("avx512f", "avx2")
    assert not cpus.multiplies_bf16()

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["BF16", "FP16", "FP32", "INT8"]

    assert openvino_model._capabilities(Core()) == {"fp32", "int8"}


def test_another_name_of_a_cpu_is_refused(info: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIMEXPORT_CPU", "old")
    with pytest.raises(OptionError, match="MIMEXPORT_CPU=old: expected plain, or unset it"):
        cpus.cpu_instructions(info)


def test_torch_and_openvino_multiply_as_on_a_plain_cpu_when_make_says_so() -> None:
    pytest.importorskip("openvino", reason="pip install 'mimexport[openvino]'")
    command = [
        "make",
        "-s",
        "-C",
        ROOT,
        "CPU=plain",
        "--no-print-directory",
        "--eval",
        "environment: ; @env -0",
        "environment",
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    said = dict(line.split("=", 1) for line in made.stdout.split("\0") if "=" in line)
    plain = {name: said[name] for name in ("MIMEXPORT_CPU", "ONEDNN_MAX_CPU_ISA")}
    assert plain["MIMEXPORT_CPU"] == "plain"
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS],
        env={**os.environ, **plain, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    products = [
        line for line in done.stdout.splitlines() if ",exec,cpu,inner_product," in line or ",exec,cpu,matmul," in line
    ]
    assert len(products) == 2
    kernels = [line.split(",exec,cpu,")[1].split(",")[1] for line in products]
    assert not [name for name in kernels if "vnni" in name or "amx" in name or "avx512_core_bf16" in name]
