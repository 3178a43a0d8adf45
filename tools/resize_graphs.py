"""Write the ONNX graphs that resize a picture on a device: `python tools/resize_graphs.py` after a change here."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, checker, helper

from mimruntime.gpu.plan import Order
from mimruntime.gpu.resize import graph_file

_OPSET, _IR = 17, 8


def resize_graph(order: Order, *, turned: bool) -> onnx.ModelProto:
    """Return the graph from pixels (H, W, 3) and two matrices to the resized square, all channels at once.

    Pillow resizes in two passes of whole numbers and rounds to 8 bits after each; here every pass is two products.

    Args:
        order: the pass that comes first.
        turned: whether rows and columns of the picture are exchanged before.

    """
    first, then = ("horizontal", "vertical") if order == "rows" else ("vertical", "horizontal")
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["planar"], perm=[2, 1, 0] if turned else [2, 0, 1]),
        helper.make_node("Cast", ["planar"], ["planes"], to=TensorProto.FLOAT),
        *_pass(first, "planes", "between"),
        *_pass(then, "between", "square"),
        helper.make_node("Cast", ["square"], ["bytes"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["bytes"], ["resized"], perm=[1, 2, 0]),
    ]
    constants = {"half": 0.5, "black": 0.0, "white": 255.0}
    shapes = {"horizontal": ["upright_width", "size"], "vertical": ["size", "upright_height"]}
    matrices = [
        helper.make_tensor_value_info(f"{direction}_{part}", TensorProto.FLOAT, shape)
        for direction, shape in shapes.items()
        for part in ("high", "low")
    ]
    graph = helper.make_graph(
        nodes,
        "resize",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["height", "width", 3]), *matrices],
        [helper.make_tensor_value_info("resized", TensorProto.UINT8, ["size", "size", 3])],
        [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    checker.check_model(model, full_check=True)
    return model


def _pass(direction: str, picture: str, out: str) -> list[onnx.NodeProto]:
    """Return the nodes of one pass: the sum of two exact products, rounded halves up and cut to 8 bits.

    The sum itself needs more digits than float32 has. So the high product is split into a whole number and a fraction, and
    the low product is added to the fraction.
    """

    def name(step: str) -> str:
        return f"{out}_{step}"

    def product(part: str) -> onnx.NodeProto:
        factors = [picture, f"{direction}_{part}"]
        return helper.make_node("MatMul", factors if direction == "horizontal" else factors[::-1], [name(part)])

    return [
        product("high"),
        product("low"),
        helper.make_node("Add", [name("high"), "half"], [name("high_up")]),
        helper.make_node("Floor", [name("high_up")], [name("whole")]),
        helper.make_node("Sub", [name("high_up"), name("whole")], [name("fraction")]),
        helper.make_node("Add", [name("fraction"), name("low")], [name("rest")]),
        helper.make_node("Floor", [name("rest")], [name("carry")]),
        helper.make_node("Add", [name("whole"), name("carry")], [name("rounded")]),
        helper.make_node("Clip", [name("rounded"), "black", "white"], [out]),
    ]


def all_graphs() -> dict[Path, bytes]:
    """Return the content of every file by its path."""
    orders: tuple[Order, ...] = ("rows", "columns")
    return {
        graph_file(order, turned=turned): resize_graph(order, turned=turned).SerializeToString(deterministic=True)
        for order in orders
        for turned in (False, True)
    }


if __name__ == "__main__":
    for path, content in all_graphs().items():
        path.write_bytes(content)
        print(f"{path}  {len(content)} bytes")
