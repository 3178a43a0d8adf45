"""TensorRT-RTX builds every backbone class with every aggregator, in both precisions, twice alike to the byte."""

import time

import onnx
import onnx.utils
import pytest
import timm
import torch
from small_models import BACKBONES, make_small
from torch import nn

from mimexport.aggregators import AGGREGATORS, make_aggregator
from mimexport.backbone import Backbone
from mimexport.embedding_model import EmbeddingModel
from mimexport.features import ComputedFeatures
from mimexport.fusions import fuse
from mimexport.graph import FILE, export_graph
from mimexport.keep import resolve_keep
from mimexport.weights import _shake_constants
from mimruntime.engines.record import BatchProfile
from mimruntime.engines.trt import builder
from mimruntime.engines.trt.flavour import TENSORRT_RTX
from mimruntime.engines.trt.plan import BuildPlan

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'mimexport[tensorrt-rtx]'")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class EveryAggregator(nn.Module):
    """Pixels -> one unit vector per aggregator that the backbone can have: all of them in one graph."""

    def __init__(self, model, precision):
        super().__init__()
        backbone = Backbone(model)
        self.names = [name for name, kind in AGGREGATORS.items() if backbone.shape.has_cls or not kind.needs_cls]
        self.aggregators = nn.ModuleList([make_aggregator(name, backbone.shape, {}) for name in self.names])
        for parameter in self.aggregators.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.dtype = DTYPES[precision]
        self.backbone = backbone.to(self.dtype)
        self.norm = backbone.norm.float() if backbone.norm is not None else None

    def forward(self, pixels):
        patches = (self.backbone.patchify(pixels.float()) - 127.5) / 127.5
        tokens, kept = self.backbone.encode(patches, self.dtype)
        norms = {"raw": None, "final": self.norm}
        features = {name: ComputedFeatures(self.backbone, tokens, norm, kept) for name, norm in norms.items()}
        vectors = [aggregator(features[aggregator.token_norm])[0] for aggregator in self.aggregators]
        return tuple(vector / vector.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-6) for vector in vectors)


def export_every(model, precision, size, folder):
    """Write one graph of all aggregators; return its path, and the name of each one's output."""
    every = EveryAggregator(model, precision).eval()
    outputs = [f"vector of {name}" for name in every.names]  # apart from the names inside the graph
    program = torch.onnx.export(
        every, (torch.zeros(2, size, size, 3, dtype=torch.uint8),),
        dynamo=True, opset_version=18, input_names=["pixels"], output_names=outputs,
        dynamic_shapes=({0: torch.export.Dim("batch")},), optimize=True, verbose=False,
    )  # fmt: skip
    fuse(program.model)
    program.save(folder / "every.onnx", external_data=False)
    return folder / "every.onnx", dict(zip(every.names, outputs, strict=True))


def export(model, precision, size, folder):
    """Write one graph per aggregator, each cut out of the one that has them all; return their paths."""
    path, outputs = export_every(model, precision, size, folder)
    extractor = onnx.utils.Extractor(onnx.load(path))
    for name, output in outputs.items():
        onnx.save(extractor.extract_model(["pixels"], [output]), folder / f"{name}.onnx")
        yield folder / f"{name}.onnx"
        (folder / f"{name}.onnx").unlink()


def build_once(path, precision):
    """Return the engine."""
    plan = BuildPlan(flavour=TENSORRT_RTX, precision=precision, batch=BatchProfile(least=1, best=8, most=32))
    return bytes(builder.build(trt, path, plan, lambda *_: None))


def build_twice(path, precision):
    """Return the size of the engine, bytes, and the seconds of the first build; the second must be equal to the byte."""
    started = time.perf_counter()
    first = build_once(path, precision)
    seconds = time.perf_counter() - started
    second = build_once(path, precision)
    assert first == second, f"{path.stem}: two builds differ"
    return len(first), seconds


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_aggregator_builds(tmp_path):
    """All in one engine; one each, twice alike to the byte, is the test of every class."""
    path, outputs = export_every(make_small("vit"), "fp32", 32, tmp_path)
    assert set(outputs) == set(AGGREGATORS)
    assert build_once(path, "fp32")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_an_encoder_that_drops_patches_builds(precision, tmp_path):
    """Tables of positions are gathered for each image, scores are in float32 in an encoder of 16 bits.

    Two such engines differ in some bytes (TensorRT-RTX 1.7), unlike those of every whole encoder.
    """
    backbone = Backbone(make_small("eva like dinov3"), resolve_keep("75%@0,50%@1", "norm", 16, 3))
    aggregator = make_aggregator("topk", backbone.shape, {})
    model = EmbeddingModel(backbone, aggregator, "raw", *[(0.5, 0.5, 0.5)] * 2, with_selection=True).eval()
    model.set_precision(precision)
    export_graph(model, tmp_path, 32)
    assert build_once(tmp_path / FILE, precision)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_class_builds_with_every_aggregator(name, precision, tmp_path):
    torch.manual_seed(0)
    # As `load_model` makes it: one size, whose position tables are constants.
    fixed = {"dynamic_img_size": False} if "dinov3" in name else {}
    model = timm.create_model(name, pretrained=False, num_classes=0, **BACKBONES[name], **fixed).eval()
    _shake_constants(model)
    size = timm.models.get_pretrained_cfg(name).input_size[-1]
    built = {path.stem: build_twice(path, precision) for path in export(model, precision, size, tmp_path)}
    sizes, seconds = zip(*built.values(), strict=True)
    figures = f"up to {max(sizes) / 1e6:.1f} MB, {max(seconds):.1f} s"
    print(f"{name} {precision}: {len(built)} engines, {figures}")  # noqa: T201 - figures for the docs
