"""Rewrite parts of the graph so that ONNX Runtime can use a fused kernel; every other engine still runs them."""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnxscript import opset18, script, values
from onnxscript.rewriter import pattern, rewrite

ATTENTION = "MultiHeadAttention"
_OP: Any = opset18
_DOMAIN = values.Opset("com.microsoft", 1)


def fuse(model: onnx_ir.Model) -> None:
    """Rewrite GELU to the pattern that ONNX Runtime fuses, and attention to one node.

    The node has the name of ONNX Runtime's own operator, and the model contains its definition as a function. ONNX Runtime
    uses its kernel if the provider has one; every other engine expands the function. docs/results/graph.md has the speed.
    Attention with a bias on the scores, or with fewer key heads than query heads, is not rewritten.
    """
    rewrite(model, _RULES)
    if any(node.op_type == ATTENTION for node in model.graph):
        function = onnx_ir.serde.deserialize_function(MultiHeadAttention.to_function_proto())
        model.functions[function.identifier()] = function
        model.opset_imports[_DOMAIN.domain] = _DOMAIN.version


@script(_DOMAIN)
def MultiHeadAttention(query, key, value, num_heads: int, scale: float):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N802 - the script's own types
    """Return attention (B, Q, D) of query (B, Q, D) to key and value (B, S, D)."""
    heads = _OP.Reshape(_OP.Constant(value_int=num_heads), _OP.Constant(value_ints=[1]))
    split = _OP.Concat(_OP.Constant(value_ints=[0, 0]), heads, _OP.Constant(value_ints=[-1]), axis=0)
    queries = _OP.Transpose(_OP.Reshape(query, split), perm=[0, 2, 1, 3])
    keys = _OP.Transpose(_OP.Reshape(key, split), perm=[0, 2, 3, 1])
    per_head = _OP.Transpose(_OP.Reshape(value, split), perm=[0, 2, 1, 3])
    scaled = queries * _OP.CastLike(_OP.Constant(value_float=scale), query)
    weights = _OP.Softmax(_OP.MatMul(scaled, keys), axis=-1)
    joined = _OP.Transpose(_OP.MatMul(weights, per_head), perm=[0, 2, 1, 3])
    return _OP.Reshape(joined, _OP.Constant(value_ints=[0, 0, -1]))


def _exported_gelu(op: Any, x: Any, root_2: Any, one: Any, half: Any) -> Any:
    return op.Mul(x, op.Mul(op.Add(op.Erf(op.Div(x, root_2)), one), half))


def _fusable_gelu(op: Any, x: Any, root_2: Any, one: Any, half: Any) -> Any:
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, root_2)), one)), half)


def _exported_attention(
    op: Any, query: Any, key: Any, value: Any, query_heads: Any, heads: Any, scale: Any, joined: Any
) -> Any:
    queries = op.Mul(op.Transpose(op.Reshape(query, query_heads), perm=[0, 2, 1, 3]), scale)
    keys = op.Transpose(op.Reshape(key, heads), perm=[0, 2, 3, 1])
    weights = op.Softmax(op.MatMul(queries, keys), axis=-1)
    per_head = op.Transpose(op.Reshape(value, heads), perm=[0, 2, 1, 3])
    return op.Reshape(op.Transpose(op.MatMul(weights, per_head), perm=[0, 2, 1, 3]), joined)


def _one_attention(op: Any, query: Any, key: Any, value: Any, heads: Any, scale: Any, **_: Any) -> Any:
    return op.MultiHeadAttention(
        _joined(op, query),
        _joined(op, key),
        value,
        num_heads=int(heads.const_value.numpy()[2]),
        scale=float(scale.const_value.numpy()),
        _domain=_DOMAIN.domain,
        _version=_DOMAIN.version,
    )


def _joined(op: Any, x: Any) -> Any:
    """Reshape per-head tokens (B, S, heads, d) to (B, S, heads · d)."""
    return x if len(x.shape) == 3 else op.Reshape(x, op.Constant(value_ints=[0, 0, -1]))


def _is_per_head(
    _: Any, query: Any, key: Any, query_heads: Any, heads: Any, scale: Any, joined: Any, **__: Any
) -> bool:
    """Return whether the matched reshapes split heads and join them again, for inputs (B, S, heads · d) or (B, S, heads, d)."""
    if any(one.const_value is None for one in (query_heads, heads, scale, joined)):
        return False
    split_query, split_key, whole = (one.const_value.numpy() for one in (query_heads, heads, joined))
    return (
        (len(split_query), len(split_key), len(whole)) == (4, 4, 3)
        and split_query[2] == split_key[2]
        and scale.const_value.size == 1
        and all(
            one.shape is not None and (len(one.shape) == 3 or (len(one.shape) == 4 and one.shape[2] == split_key[2]))
            for one in (query, key)
        )
    )


_RULES = pattern.RewriteRuleSet(
    [
        *pattern.RewriteRuleSet([pattern.RewriteRule(_exported_gelu, _fusable_gelu)], commute=True),
        pattern.RewriteRule(_exported_attention, _one_attention, _is_per_head),
    ]
)
