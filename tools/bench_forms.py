"""Measure other forms of an artifact's graph, made of ONNX Runtime's own operators: images/s against the artifact's.

    python tools/bench_forms.py artifacts/mae-b16-topk
    python tools/bench_forms.py artifacts/mae-b16-topk --provider cuda --batch 128

A form that gains on one provider and loses on none may become the artifact's; one artifact serves every engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from mimruntime.artifact import Artifact
from mimruntime.bench.measure import in_turn
from mimruntime.cpus import describe_cpu
from mimruntime.engines import onnxruntime
from mimruntime.engines.gpu_name import gpu_name
from mimruntime.errors import EngineError
from mimruntime.reference import load_reference

_OWN = "com.microsoft"
Biased = tuple[ir.Node, ir.Node, ir.Value]
"""MatMul, Add and bias of a product with a bias."""


@click.command()
@click.argument("path", metavar="ARTIFACT", type=click.Path(path_type=Path, exists=True))
@click.option("--provider", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--batch", default=4, show_default=True)
@click.option("--pairs", default=15, show_default=True, help="Number of runs in turn with the artifact's graph.")
def main(path: Path, provider: str, batch: int, pairs: int) -> None:
    """Measure each form, and print a table."""
    artifact = Artifact.open(path)
    images = load_reference(artifact)[0]
    pixels = images[np.arange(batch) % len(images)]
    where = describe_cpu() if provider == "cpu" else gpu_name()
    click.echo(f"{where}; {artifact.manifest.name}, {artifact.manifest.graph.precision}, batch {batch}\n")
    click.echo("| form | images/s to the artifact's | middle half | worst cosine |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, _open(artifact.graph, provider) as ours:
        exact = ours.run(pixels)["embedding"]
        for title, graph in write_forms(artifact.graph, Path(folder)):
            with _open(graph, provider) as form:
                try:
                    cosine = float((form.run(pixels)["embedding"] * exact).sum(axis=1).min())
                except EngineError as error:
                    click.echo(f"| {title} | does not run: {str(error).rpartition(': ')[2]} | | |")
                    continue
                (found,) = in_turn(("", form, batch), [("", ours, batch)], pixels, pairs)
            click.echo(f"| {title} | {found.ratio:.3f} | {found.low:.3f} to {found.high:.3f} | {cosine:.7f} |")


def _open(graph: Path, provider: str) -> Any:
    return onnxruntime.open_engine(graph, provider=provider, threads=None)


def write_forms(graph: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Write `graph` in each form into `folder`; yield the forms' titles and files."""
    for title, steps in FORMS.items():
        model = ir.load(graph)
        for change in steps:
            change(model.graph)
        target = folder / f"{'-'.join(change.__name__ for change in steps)}.onnx"
        ir.save(model, target)
        yield title, target


def biases_in_attention(graph: ir.Graph) -> None:
    """Give the biases of query, key and value to the attention."""
    for node, found in _attentions(graph):
        bias = _constant(graph, f"{node.outputs[0].name}_bias", np.concatenate([_array(one[2]) for one in found]))
        new = ir.node(
            node.op_type, [*(one[0].outputs[0] for one in found), bias], dict(node.attributes.items()), domain=_OWN
        )
        _replace(graph, [*(one[1] for one in found), node], new)


def one_packed_product(graph: ir.Graph) -> None:
    """Compute query, key and value of the same tokens as one product, in the order that the attention reads."""
    for node, found in _attentions(graph):
        if len({one[0].inputs[0] for one in found}) > 1:
            continue
        heads = node.attributes["num_heads"].as_int()
        weights = [_array(product.inputs[1]) for product, _, _ in found]
        biases = [_array(bias) for _, _, bias in found]
        width, name = len(weights[0]), node.outputs[0].name
        weight = np.stack([one.reshape(width, heads, -1) for one in weights], 2).reshape(width, -1)
        bias = np.stack([one.reshape(heads, -1) for one in biases], 1).reshape(-1)
        shape = np.array([0, 0, heads, 3, weights[0].shape[1] // heads])
        product = ir.node("MatMul", [found[0][0].inputs[0], _constant(graph, f"{name}_weight", weight)])
        added = ir.node("Add", [product.outputs[0], _constant(graph, f"{name}_bias", bias)])
        packed = ir.node("Reshape", [added.outputs[0], _constant(graph, f"{name}_packed", shape)])
        new = ir.node(node.op_type, packed.outputs, dict(node.attributes.items()), domain=_OWN)
        _replace(graph, [part for one in found for part in one[:2]] + [node], product, added, packed, new)


def norm_of_the_sum(graph: ir.Graph) -> None:
    """Compute the bias of a branch, its sum with the residual stream, and the norm of that as one."""
    for node in [one for one in graph if one.op_type == "LayerNormalization"]:
        total = node.inputs[0].producer()
        if total is None or total.op_type != "Add":
            continue
        skip, branch = total.inputs
        found = _biased(branch)
        if found is None or len(branch.uses()) > 1:
            continue
        product, add, bias = found
        epsilon = {"epsilon": node.attributes["epsilon"].as_float()}
        new = ir.node(
            "SkipLayerNormalization", [product.outputs[0], skip, node.inputs[1], node.inputs[2], bias], epsilon,
            domain=_OWN, num_outputs=4,
        )  # fmt: skip
        ir.convenience.replace_nodes_and_values(
            graph,
            node,
            [add, total, node],
            [new],
            [node.outputs[0], total.outputs[0]],
            [new.outputs[0], new.outputs[3]],
        )


def products_with_biases(graph: ir.Graph) -> None:
    """Compute products with a bias as Gemm of all tokens of a batch."""
    for add in [one for one in graph if one.op_type == "Add"]:
        found = _biased(add.outputs[0])
        if found is None or len(found[0].outputs[0].uses()) > 1 or add.outputs[0].shape is None:
            continue
        product, _, bias = found
        tokens, weight = product.inputs
        (width, out), name = _array(weight).shape, add.outputs[0].name
        back = np.array([-1, *(int(size) for size in add.outputs[0].shape[1:-1]), out])
        flat = ir.node("Reshape", [tokens, _constant(graph, f"{name}_flat", np.array([-1, width]))])
        gemm = ir.node("Gemm", [flat.outputs[0], weight, bias])
        new = ir.node("Reshape", [gemm.outputs[0], _constant(graph, f"{name}_back", back)])
        _replace(graph, [product, add], flat, gemm, new)


FORMS: dict[str, tuple[Callable[[ir.Graph], None], ...]] = {
    "biases within the attention": (biases_in_attention,),
    "query, key and value as one product, packed by head": (one_packed_product,),
    "residual sum and norm as one": (norm_of_the_sum,),
    "products with their biases": (products_with_biases,),
    "biases within the attention; residual sum and norm as one": (norm_of_the_sum, biases_in_attention),
    "residual sum and norm as one; products with their biases": (norm_of_the_sum, products_with_biases),
}


def _attentions(graph: ir.Graph) -> Iterator[tuple[ir.Node, list[Biased]]]:
    """Yield each attention whose query, key and value are products with biases, and these products."""
    for node in [one for one in graph if one.op_type == "MultiHeadAttention"]:
        found = [one for one in map(_biased, node.inputs) if one is not None]
        if len(found) == 3:
            yield node, found


def _biased(value: ir.Value | None) -> Biased | None:
    add = value.producer() if value is not None else None
    if add is None or add.op_type != "Add" or add.inputs[1].const_value is None:
        return None
    product = add.inputs[0].producer()
    if product is None or product.op_type != "MatMul" or product.inputs[1].const_value is None:
        return None
    return product, add, add.inputs[1]


def _array(value: ir.Value) -> np.ndarray:
    return value.const_value.numpy()


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, old: list[ir.Node], *new: ir.Node) -> None:
    """Put `new` where the last of `old` is; the last output of each takes the other's place."""
    ir.convenience.replace_nodes_and_values(graph, old[-1], old, [*new], old[-1].outputs, new[-1].outputs)


if __name__ == "__main__":
    main()
