"""The graph that is written keeps the rules, and one that breaks them is refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from catalogue import graph_of, shallow
from onnx import TensorProto, helper
from small_models import make_small

from mimexport import graph
from mimexport.aggregators import make_aggregator
from mimexport.backbone import Backbone
from mimexport.embedding_model import EmbeddingModel
from mimexport.errors import GraphError

HALF = (0.5, 0.5, 0.5)


def small_embedding_model(name="vit", agg="topk", **options):
    backbone = Backbone(make_small(name))
    aggregator = make_aggregator(agg, backbone.shape, {})
    return EmbeddingModel(backbone, aggregator, "raw", HALF, HALF, **options).eval()


def pixels(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": images})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, the graph that was written of it, and its ports."""
    folder, model = tmp_path_factory.mktemp("graph"), small_embedding_model(with_selection=True)
    ports = graph.export_graph(model, folder, 32)
    return model, folder / graph.FILE, ports


def test_the_ports_are_pixels_in_embedding_and_selection_out(exported):
    _, _, (inputs, outputs) = exported
    assert [(p.name, p.dtype, p.shape) for p in inputs] == [("pixels", "uint8", ("batch", 32, 32, 3))]
    assert [(p.name, p.dtype, p.shape) for p in outputs] == [
        ("embedding", "float32", ("batch", 48)),
        ("selection", "float32", ("batch", 4, 4)),
    ]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_gives_what_torch_gives_and_unit_length(exported, count):
    model, path, _ = exported
    embedding, selection = run(path, pixels(count))
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels(count)))
    np.testing.assert_allclose(embedding, expected[0].numpy(), atol=2e-6)
    np.testing.assert_array_equal(selection, expected[1].numpy())
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)


def test_half_precision_is_typed_into_the_graph_with_a_float32_tail(tmp_path):
    model = small_embedding_model()
    model.set_precision("fp16")
    graph.export_graph(model, tmp_path, 32)
    written = onnx.load(tmp_path / graph.FILE)
    types = {tensor.data_type for tensor in written.graph.initializer if len(tensor.dims) == 2}
    assert types == {TensorProto.FLOAT16}
    topk = next(node for node in written.graph.node if node.op_type == "TopK")
    inferred = onnx.shape_inference.infer_shapes(written)
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    assert kinds[topk.input[0]] == TensorProto.FLOAT


def test_layer_norm_stays_one_operator():
    operators = [node.op_type for node in onnx.load(graph_of("eva")).graph.node]
    assert operators.count("LayerNormalization") >= 4
    assert not {"If", "Tile", "ScatterND", "Sin", "Cos", "Range"} & set(operators)


@pytest.mark.parametrize("name", ["vit", "beit"])
def test_onnxruntime_fuses_every_gelu_with_its_bias(tmp_path, name):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(graph_of(name), options, providers=["CPUExecutionProvider"])
    exported, optimised = (
        [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
        for file in (graph_of(name), tmp_path / "optimised.onnx")
    )
    assert exported.count("Erf") == optimised.count("BiasGelu") > 0
    assert "Erf" not in optimised


def test_unused_weights_are_not_in_the_file():
    stored = sum(int(np.prod(t.dims)) for t in onnx.load(graph_of("vit")).graph.initializer)
    used = sum(p.numel() for name, p in shallow("vit").named_parameters() if not name.startswith("norm."))
    assert stored <= used * 1.01


def test_weights_beyond_the_limit_of_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "_SINGLE_FILE_LIMIT", 1000)
    model = small_embedding_model()
    graph.export_graph(model, tmp_path, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels(2)))[0].numpy()
    np.testing.assert_allclose(run(tmp_path / graph.FILE, pixels(2))[0], expected, atol=2e-6)


def planted(tmp_path, *, operator="Identity", batch="batch", opset=graph.OPSET, output="embedding"):
    """A graph that is right but for what is planted."""
    floats = helper.make_tensor_value_info
    attributes = {"Identity": {}, "RandomNormalLike": {}}.get(operator, {})
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node(operator, ["x"], ["y"], **attributes),
        helper.make_node("ReduceMean", ["y"], [output], axes=[1, 2], keepdims=0)
        if opset < 18
        else helper.make_node("ReduceMean", ["y", "axes"], [output], keepdims=0),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    made = helper.make_graph(
        nodes, "g",
        [floats("pixels", TensorProto.UINT8, [batch, 8, 8, 3])],
        [floats(output, TensorProto.FLOAT, [batch, 3])],
        [axes],
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)]), path)
    return path


def test_a_graph_without_a_planted_fault_passes(tmp_path):
    graph.check_graph(planted(tmp_path), ["embedding"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"operator": "RandomNormalLike"}, "contains RandomNormalLike, .* must not be random"),
        (
            {"operator": "Resize"},
            "contains Resize, which is not allowed: position tables are resampled before the export",
        ),
        ({"batch": 1}, r"pixels has shape \(1, 8, 8, 3\), expected a dynamic batch"),
        ({"opset": 21}, "opset 21, expected 18"),
        ({"output": "vector"}, r"inputs and outputs \['pixels', 'vector'\], expected \['pixels', 'embedding'\]"),
    ],
)
def test_a_planted_fault_is_refused(tmp_path, fault, message):
    with pytest.raises(GraphError, match=message):
        graph.check_graph(planted(tmp_path, **fault), ["embedding"])


def test_a_failure_of_the_exporter_is_one_line(tmp_path):
    class Unexportable(EmbeddingModel):
        def forward(self, pixels):
            return (pixels.float() if pixels.float().mean() > 0 else pixels,)  # depends on data

    model = small_embedding_model()
    model.__class__ = Unexportable
    with pytest.raises(GraphError, match=r"^the ONNX exporter failed: .+$"):
        graph.export_graph(model, tmp_path, 32)
