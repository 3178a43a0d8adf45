"""Fitting and evaluation compute where they are told to: nothing stays behind on the CPU, and nothing is TF32."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from catalogue import built
from click.testing import CliRunner
from small_models import SMALL_MODELS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mimexport
from mimeval import knn, linear_probe
from mimeval.accelerator import accelerated
from mimeval.deployments import reference_identity
from mimeval.neighbours import nearest
from mimexport.aggregators import AGGREGATORS, make_aggregator
from mimexport.backbone import Backbone
from mimexport.cli import COMMANDS, _references
from mimexport.device import CPU, choose_device, full_precision
from mimexport.features import ComputedFeatures
from mimexport.fitting.tokens import Tokens
from mimexport.gpu_products import GpuProducts, products_on
from mimexport.keep import keep_in
from mimexport.references import References
from mimruntime.artifact import Artifact
from mimruntime.errors import OptionError, UnknownNameError

KEPT = (None, ("50%", "center-norm"), ("50%@1", "contrast"), ("50%@1", "center"))


def to_fake_gpu(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Move what `Module.to` moves onto a GPU that checks devices and computes shapes alone."""
    for one in module.modules():
        for name, parameter in one._parameters.items():
            if parameter is not None:
                moved = mode.from_tensor(parameter.detach()).to("cuda")
                one._parameters[name] = nn.Parameter(moved, requires_grad=False)
        one._buffers.update({name: mode.from_tensor(b).to("cuda") for name, b in one._buffers.items() if b is not None})
    if getattr(module, "keep", None) is not None and not module.selection.fixed:
        module.selection._weights = mode.from_tensor(module.selection._weights).to("cuda")
    return module


@pytest.mark.parametrize("name", ["vit", "eva", "beit with both biases", "hiera"])
def test_every_backbone_and_aggregator_computes_on_one_device(name) -> None:
    """A tensor left on the CPU is an error of the stand-in, as it is one of a GPU."""
    for kept in KEPT:
        model = SMALL_MODELS[name]()
        if kept and name == "hiera":
            continue
        backbone = Backbone(model, keep_in(model, *(kept or (None, None))))
        size = (64, 64) if name == "hiera" else (32, 32)
        free = [agg for agg, kind in AGGREGATORS.items() if backbone.shape.has_cls or not kind.needs_cls]
        aggregators = [make_aggregator(agg, backbone.shape, {}) for agg in free]
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            backbone = to_fake_gpu(backbone, mode)
            tokens, places = backbone.encode(backbone.patchify(torch.zeros(2, *size, 3).to("cuda")))
            features = ComputedFeatures(backbone, tokens, backbone.norm, places)
            for aggregator in aggregators:
                assert to_fake_gpu(aggregator, mode)(features).vector.device.type == "cuda"


@pytest.mark.parametrize("kept", KEPT[1:])
def test_what_weights_patches_early_moves_with_its_encoder_and_stays_float32(kept) -> None:
    model = SMALL_MODELS["vit"]()
    backbone = Backbone(model, keep_in(model, *kept)).to("meta").half()
    assert backbone.device.type == backbone.selection.positions.device.type == "meta"
    if not backbone.selection.fixed:
        assert backbone.selection._weights.device.type == "meta"
        assert backbone.selection._weights.dtype == torch.float32


def test_auto_is_the_gpu_where_torch_sees_one_and_cuda_without_one_is_refused(monkeypatch) -> None:
    for seen, auto in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert choose_device().type == auto
        assert choose_device("cpu") == CPU
    assert choose_device("cuda").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(OptionError, match=r"--device cuda: torch .* sees no GPU"):
        choose_device("cuda")
    with pytest.raises(UnknownNameError, match="unknown device 'gpu'"):
        choose_device("gpu")


def test_tf32_is_off_while_it_computes_and_then_as_the_caller_had_it() -> None:
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        flags[0].allow_tf32 = flags[1].allow_tf32 = True
        with full_precision():
            assert [flag.allow_tf32 for flag in flags] == [False, False]
        assert [flag.allow_tf32 for flag in flags] == [True, True]
    finally:
        for flag, was in zip(flags, before, strict=True):
            flag.allow_tf32 = was


@pytest.mark.parametrize(
    "arguments",
    [
        ("fit", "--model", "mae-tiny", "--agg", "mean", "--unlabelled", "--out", "head.safetensors"),
        ("eval", "artifact"),
        ("known-answers", "mae-tiny"),
    ],
)
def test_a_command_says_that_there_is_no_gpu(arguments, monkeypatch, tmp_path, toy_artifact) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            _write(tmp_path / "data" / name / f"{number}.png", image)
    if arguments[0] == "eval":
        arguments = ("eval", str(toy_artifact))
    command = next(command for command in COMMANDS if command.name == arguments[0])
    data = "drawn" if arguments[0] == "known-answers" else "data"
    done = CliRunner().invoke(command, [*arguments[1:], "--data", data, "--device", "cuda"], obj=_references)
    assert isinstance(done.exception, OptionError)
    assert str(done.exception).startswith("--device cuda")


def _write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


def test_vectors_of_another_device_are_not_taken_for_these(toy_artifact) -> None:
    artifact = Artifact.open(toy_artifact)
    engines = [SimpleNamespace(name="torch", provider=device, version="2", outputs=()) for device in ("cpu", "cuda")]
    assert len({reference_identity(artifact, engine) for engine in engines}) == 2


def blobs(classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.resize(np.arange(classes), 600)
    table = (rng.standard_normal((classes, 24))[labels] + 1.5 * rng.standard_normal((600, 24))).astype(np.float32)
    return table[:400], labels[:400], table[400:]


def test_torch_finds_the_neighbours_that_numpy_finds() -> None:
    train, _, queries = blobs(5)
    gpu = GpuProducts(CPU)
    for asked, alone in ((queries, False), (train, True)):
        wanted, cosines = nearest(asked, train, 7, leave_one_out=alone)
        indices, found = gpu.nearest(asked, train, 7, leave_one_out=alone)
        assert (indices == wanted).all()
        np.testing.assert_allclose(found, cosines, atol=1e-6)
    same = np.array([[1, 1], [-1, 1], [1, 1], [1, 1]], np.float32)
    assert gpu.nearest(same, same, 4)[0][3].tolist() == [0, 2, 3, 1]  # of equal cosines the first row comes first


@pytest.mark.parametrize("classes", [2, 5])
def test_a_probe_with_torchs_gradients_is_scikit_learns(classes) -> None:
    train, labels, queries = blobs(classes)
    by_sklearn = linear_probe.predict(train, labels, queries)
    with accelerated(GpuProducts(CPU)):
        assert (linear_probe.predict(train, labels, queries) == by_sklearn).mean() >= 0.99


def test_metrics_ask_the_accelerator_in_its_block_alone() -> None:
    train, labels, queries = blobs(2)
    asked = []

    class Spy(GpuProducts):
        def nearest(self, *given, **named):
            asked.append("nearest")
            return super().nearest(*given, **named)

        def cross_entropy(self, *given):
            asked.append("loss")
            return super().cross_entropy(*given)

    with accelerated(Spy(CPU)):
        predicted = knn.predict(train, labels, queries)
        linear_probe.fit(train, labels)
    assert asked[0] == "nearest"
    assert "loss" in asked
    count = len(asked)
    assert (knn.predict(train, labels, queries) == predicted).all()
    assert len(asked) == count
    assert products_on(CPU) is None


def test_tokens_stay_on_the_disk_where_no_gpu_computes() -> None:
    tokens = Tokens(*(np.zeros((2, 3), np.float16) for _ in range(4)))
    assert tokens.near(CPU) is tokens


@pytest.mark.gpu
def test_a_gpu_gives_the_vectors_the_heads_and_the_neighbours_of_the_cpu(tmp_path, photos) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    from PIL import Image

    for number, photo in enumerate(photos):
        folder = tmp_path / "data" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(photo) as image:
            small = image.convert("RGB").resize((256, 256))
        for part in range(16):
            left, top = 32 * (part % 4), 32 * (part // 4)
            small.crop((left, top, left + 128, top + 128)).save(folder / f"{number}-{part}.png")
    artifact = built(model="mae-tiny", agg="topk", with_selection=True)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 64, 64, 3), np.uint8)
    outputs = [References(device=device).open([artifact])[0].run(pixels) for device in ("cpu", "cuda")]
    for name, values in outputs[0].items():
        np.testing.assert_allclose(outputs[1][name], values, atol=1e-4)
    for agg, labels in (("cls", False), ("abmilp", False), ("ep", True)):
        heads = [
            mimexport.fit("mae-tiny", agg, tmp_path / "data", labels=labels, cache=tmp_path / "cache", device=device)
            for device in ("cpu", "cuda")
        ]
        for name, tensor in heads[0].tensors.items():
            torch.testing.assert_close(heads[1].tensors[name], tensor, atol=1e-2, rtol=1e-2)
        recalls = [head.figures["two_view_recall_at_1"] for head in heads]
        assert abs(recalls[0] - recalls[1]) <= 0.02
    train, labels, queries = blobs(5)
    gpu = GpuProducts(torch.device("cuda"))
    assert (gpu.nearest(queries, train, 7)[0] == nearest(queries, train, 7)[0]).mean() > 0.999
    with accelerated(gpu):
        on_gpu = linear_probe.predict(train, labels, queries)
    assert (on_gpu == linear_probe.predict(train, labels, queries)).mean() >= 0.99
