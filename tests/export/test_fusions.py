"""Attention as one node: the definition it carries is what ONNX Runtime's kernel computes, and every engine reads it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import onnx_ir
import onnxruntime
import openvino
import pytest
import torch
from catalogue import graph_of, shallow
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small_models import SMALL_MODELS

from mimexport.fusions import ATTENTION, MultiHeadAttention, fuse

WRITTEN_OUT = ("beit", "beit with shared bias", "beit with both biases")
"""Those of `SMALL_MODELS` whose scores have a bias."""
ATTENTION_OF_OTHERS = (
    "vit without cls", "vit with registers", "vit with pool norm", "vit with post norm", "eva with post norm",
    "beit with both biases", "eva with mixed rope", "eva with split projections",
)  # fmt: skip
"""Those of `SMALL_MODELS` that differ from another elsewhere alone."""


def one_attention(heads: int, dim: int, scale: float) -> onnx.ModelProto:
    names = ("query", "key", "value")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", name, dim]) for name in names]
    node = helper.make_node(ATTENTION, names, ["out"], domain="com.microsoft", num_heads=heads, scale=scale)
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["b", "query", dim])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph([node], "g", ports, [out]),
        opset_imports=opsets,
        functions=[MultiHeadAttention.to_function_proto()],
        ir_version=10,
    )


def in_onnxruntime(model: onnx.ModelProto, tensors: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, tensors)[0]


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 9),
    tokens=st.integers(1, 9),
    heads=st.integers(1, 4),
    head=st.sampled_from([1, 3, 8, 64]),
    scale=st.floats(0.01, 2),
    seed=st.integers(0, 99),
)
def test_the_kernel_the_definition_and_torch_agree(batch, queries, tokens, heads, head, scale, seed):
    model = one_attention(heads, heads * head, scale)
    onnx.checker.check_model(model, full_check=True)
    rng = np.random.default_rng(seed)
    tensors = {
        name: rng.standard_normal((batch, length, heads * head), np.float32)
        for name, length in (("query", queries), ("key", tokens), ("value", tokens))
    }
    per_head = [torch.from_numpy(one).unflatten(-1, (heads, head)).transpose(1, 2) for one in tensors.values()]
    expected = (
        torch.nn.functional.scaled_dot_product_attention(*per_head, scale=scale).transpose(1, 2).flatten(2).numpy()
    )
    written_out = onnx.inliner.inline_local_functions(model)
    assert not written_out.functions
    for found in (in_onnxruntime(model, tensors), in_onnxruntime(written_out, tensors)):
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.cpu
def test_openvino_reads_the_definition():
    model, rng = one_attention(4, 32, 0.3), np.random.default_rng(0)
    tensors = {name: rng.standard_normal((2, 5, 32), np.float32) for name in ("query", "key", "value")}
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU", config)
    np.testing.assert_allclose(compiled(tensors)[0], in_onnxruntime(model, tensors), atol=2e-5)


def test_onnxruntime_takes_its_kernel(tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(one_attention(2, 8, 1.0).SerializeToString(), options)
    assert [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node] == [ATTENTION]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ATTENTION_OF_OTHERS else [])
        for name in SMALL_MODELS
        if "oblong" not in name
    ],
)
def test_plain_attention_is_fused_in_every_block_and_no_other(name):
    written = onnx.load(graph_of(name))
    count = sum(node.op_type == ATTENTION for node in written.graph.node)
    blocks = 1 if name == "hiera" else len(shallow(name).blocks)  # of Hiera's the last is opened
    assert count == (0 if name in WRITTEN_OUT else blocks)
    assert len(written.functions) == bool(count)


def test_a_reshape_that_is_not_by_heads_stays(tmp_path):
    """The same chain over (B · S, D): its batch is no batch of attention."""

    class Model(torch.nn.Module):
        def forward(self, x):
            q, k, v = (one.reshape(2, 3, 2, 4).transpose(1, 2) for one in (x, x + 1, x + 2))
            weights = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1)
            return (weights @ v).transpose(1, 2).reshape(2, 3, 8)

    program = torch.onnx.export(Model().eval(), (torch.zeros(6, 8),), dynamo=True, opset_version=18, verbose=False)
    before = program.model.graph.num_nodes()
    fuse(program.model)
    assert program.model.graph.num_nodes() == before
    assert isinstance(program.model, onnx_ir.Model)
    assert not program.model.functions
