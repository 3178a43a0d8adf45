"""A narrower precision is typed in the graph, is measured on real images, and says what it needs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from catalogue import built, copied
from click.testing import CliRunner
from PIL import Image
from torch import nn

from mimexport.cli.build import build_command
from mimexport.composition import compose
from mimexport.embedding_model import EmulatedHalf, embed_with_torch
from mimexport.heads import Head
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.precision_loss import compare, load_images, neighbour_overlap
from mimexport.quantize import Recipe, products
from mimexport.weights import load_model
from mimruntime.artifact import Artifact
from mimruntime.engines import openvino_model
from mimruntime.engines.compilation import compile_artifact
from mimruntime.engines.opening import open_for
from mimruntime.engines.options import CompileOptions
from mimruntime.errors import EngineError, OptionError, ParityError
from mimruntime.reference import load_reference

pytestmark = pytest.mark.cpu


def tiny(precision: str, calibrate: Path) -> Artifact:
    return built(model="mae-tiny", agg="topk", precision=precision, calibrate=calibrate)


def build_tiny(out: Path, precision: str, calibrate: Path | None) -> Artifact:
    return build(BuildOptions(model="mae-tiny", agg="topk", out=out, precision=precision, calibrate=calibrate))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_encoder_of_fewer_patches_is_built_in_a_narrower_precision(calibration_crops: Path, precision: str) -> None:
    kept = {"keep": "75%@0,50%@6", "keep_by": "center-norm"}
    artifact = built(model="mae-tiny", agg="topk", precision=precision, calibrate=calibration_crops, **kept)
    assert str(artifact.manifest.keep) == "48 before block 0, 32 before block 6, by center-norm"
    assert artifact.manifest.conversion.median_cosine > 0.99
    assert artifact.manifest.conversion.neighbour_overlap > 0.5
    with open_for(artifact, "openvino" if precision == "bf16" else "onnxruntime") as opened:
        assert opened.run(np.zeros((2, 64, 64, 3), np.uint8))["embedding"].shape == (2, 192)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_narrower_precision_is_built_judged_and_run(calibration_crops: Path, precision: str) -> None:
    artifact = tiny(precision, calibration_crops)
    conversion = artifact.manifest.conversion
    assert conversion.images == 80
    assert conversion.calibration_images == (20 if precision == "int8" else 0)
    assert conversion.median_cosine > 0.99
    assert 0.5 < conversion.neighbour_overlap <= 1
    engine = "openvino" if precision == "bf16" else "onnxruntime"
    with open_for(artifact, engine) as opened:
        assert opened.run(np.zeros((2, 64, 64, 3), np.uint8))["embedding"].shape == (2, 192)
    if precision == "int8":
        assert artifact.graph.stat().st_size < 12e6
    if precision == "bf16":
        with pytest.raises(EngineError) as caught:
            open_for(artifact, "onnxruntime")
        assert "\n" not in str(caught.value)
        assert "bf16" in str(caught.value)


@pytest.fixture(scope="module")
def in_bf16(small_alias: str, calibration_crops: Path) -> Artifact:
    pytest.importorskip("openvino", reason="pip install 'mimexport[openvino]'")
    return built(model=small_alias, agg="topk", precision="bf16", calibrate=calibration_crops, random_seed=0)


def test_the_cost_of_bf16_is_that_of_products_in_bf16_whatever_this_cpu_has(
    in_bf16: Artifact, calibration_crops: Path
) -> None:
    loaded = load_model("small", random_seed=0)
    model, _ = compose(loaded, BuildOptions(model="small", agg="topk", out=Path(), random_seed=0))
    _, images = load_images(calibration_crops, in_bf16.manifest.preprocess)
    reference = embed_with_torch(model, images)
    model.set_precision("bf16")
    expected = compare(embed_with_torch(model, images), reference, 0)
    found = in_bf16.manifest.conversion
    assert found.worst_cosine == pytest.approx(expected.worst_cosine, abs=2e-4)
    assert found.neighbour_overlap == pytest.approx(expected.neighbour_overlap, abs=0.02)
    # Weights alone, rounded to 8 bits, move a vector by a few parts in a million.
    assert found.median_cosine < 0.999999


def test_openvino_widens_bf16_where_the_cpu_has_no_bf16(in_bf16: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    images, reference = load_reference(in_bf16)
    monkeypatch.setattr(openvino_model, "_capabilities", lambda core: {"fp32"})
    with open_for(in_bf16, "openvino") as engine:
        assert engine.precision == "fp32"
        # Closer than products in bf16 would be.
        lost = 1 - compare(engine.run(images)["embedding"], reference, 0).worst_cosine
        assert 0 < lost < (1 - in_bf16.manifest.conversion.worst_cosine) / 2
        kinds = {op.get_rt_info()["runtimePrecision"].astype(str) for op in engine._model.get_runtime_model().get_ops()}
        assert "bf16" not in kinds


@pytest.mark.parametrize(("precision", "least", "instead"), [("bf16", "0.98", "fp16"), ("fp16", "0.999", "fp32")])
def test_what_a_precision_costs_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, least: str, instead: str
) -> None:
    """Whatever this CPU computes it in."""
    options = BuildOptions(model="mae-tiny", agg="cls", out=tmp_path / "a", precision=precision, whiten=0)
    message = rf"torch: embeddings in {precision} differ .* at least {least} is expected; use --precision {instead}"
    monkeypatch.setattr(
        "mimexport.graph.export_graph", lambda *_: ((), ())
    )  # measured with torch, the graph is not asked
    with pytest.raises(ParityError, match=message):
        build(options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_products_are_those_of_torch(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(3, 64, 64, generator=generator).to(dtype) for _ in range(2))
    layer = nn.Linear(64, 16).to(dtype)
    with torch.inference_mode():
        expected = x @ w, layer(x), torch.matmul(x, w)
        with EmulatedHalf():
            found = x @ w, layer(x), torch.matmul(x, w)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.slow
def test_turing_runs_the_default_in_fp16(small_alias: str, tmp_path: Path) -> None:
    """The T4 is the commonest GPU there is to rent, and RTX has no fp32 product for it."""
    pytest.importorskip("tensorrt_rtx", reason="pip install 'mimexport[tensorrt-rtx]'")
    options = CompileOptions(engine="tensorrt-rtx", arch=("sm75",))
    copied(built(model=small_alias, agg="topk", precision="fp16", random_seed=0), tmp_path / "a")
    assert "sm75" in compile_artifact(tmp_path / "a", options).record.hardware
    whitening = torch.zeros(48), torch.eye(48)
    loaded = load_model(small_alias, random_seed=0)
    head = Head(
        agg="mean", params={}, token_norm="raw", dim=48, grid=(4, 4), model="small", backbone_sha256=loaded.sha256,
        tensors={}, whitening=whitening,
    )  # fmt: skip
    whitened = BuildOptions(model=small_alias, agg="mean", head=head, whiten=0, out=tmp_path / "w", random_seed=0)
    build(dataclasses.replace(whitened, precision="fp16"))
    with pytest.raises(EngineError, match=r"--arch sm75: Turing has no fp32 matrix product .* or leave sm75 out"):
        compile_artifact(tmp_path / "w", options)


@pytest.mark.slow
def test_products_after_the_last_block_and_of_attention_stay_float32(tmp_path: Path) -> None:
    artifact = build(BuildOptions(model="mae-tiny", agg="ep", out=tmp_path / "ep"))
    # Twelve blocks of query, key, value, projection and two of the MLP.
    assert len(products(artifact.graph, Recipe(skip_first=0, skip_last=0))) == 12 * 6
    assert len(products(artifact.graph, Recipe(skip_first=1, skip_last=0))) == 11 * 6
    assert len(products(artifact.graph, Recipe(skip_first=0, skip_last=1))) == 11 * 6
    assert len(products(artifact.graph, Recipe())) == 10 * 6


def test_onnx_runtime_computes_every_quantised_product_in_int8(tmp_path: Path, calibration_crops: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    graph = tiny("int8", calibration_crops).graph
    # With every optimisation, as other programs run it: equal pairs would be merged and computed in float32.
    onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    # Ten blocks of query, key, value, projection and two of the MLP.
    assert (counts["MatMulIntegerToFloat"], counts["DequantizeLinear"]) == (10 * 6, 0)


def test_int8_needs_real_images(tmp_path: Path, calibration_crops: Path) -> None:
    with pytest.raises(OptionError, match="--precision int8 needs real images to calibrate on: --calibrate FOLDER"):
        build_tiny(tmp_path / "a", "int8", None)
    assert not (tmp_path / "a").exists()


def test_images_that_are_all_the_same_calibrate_and_judge_nothing(tmp_path: Path) -> None:
    same = tmp_path / "same"
    same.mkdir()
    for index in range(50):
        Image.new("RGB", (80, 80), "magenta").save(same / f"{index}.png")
    with pytest.raises(OptionError, match="only 1 of 50 images are different; give at least 40"):
        build_tiny(tmp_path / "a", "int8", same)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "openvin"], "did you mean openvino"),
        (["--engine", "openvino", "--tf32"], "--tf32 is not an option of the engine 'openvino'"),
        (["--engine", "openvino", "--batch", "8"], "--batch 8: expected MIN,BEST,MAX"),
        (["--engine", "openvino", "--provider", "cuda"], "unknown provider of the engine 'openvino'"),
        (["--engine", "onnxruntime", "--precision", "bf16"], "has no bf16 kernels on a CPU"),
        (["--engine", "tensorrt-rtx", "--arch", "sm90"], "--arch sm90: tensorrt-rtx has no kernels for it"),
        (["--engine", "tensorrt-rtx", "--arch", "sm75"], "Turing has no fp32 matrix product"),
    ],
)
def test_what_cannot_be_compiled_is_said_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.setattr("mimexport.pipeline.build", lambda *_, **__: pytest.fail("built"))
    assert message in str(CliRunner().invoke(build_command, ["--model", "mae-tiny", *options]).exception)


def test_neighbours_kept_are_all_of_them_for_equal_vectors_and_few_for_unrelated_ones() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((200, 8)).astype(np.float32) for _ in range(2))
    assert neighbour_overlap(a, a) == 1
    assert neighbour_overlap(a, b) < 0.15
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    assert compare(unit, unit, 0).worst_cosine == 1
