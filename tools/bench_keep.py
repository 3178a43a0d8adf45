"""Measure images/s of large backbones with fewer patches, in turn with the full encoder.

    python tools/bench_keep.py --model mae-b16 --model mae-l16
    python tools/bench_keep.py --model mae-b16 --engine onnxruntime --provider cuda --precision fp16 --batches 1,128 --jobs 8
    python tools/bench_keep.py --products 768x12 --products 1024x24

Weights are random: speed does not depend on them. Each ratio is the median of pairs of runs, A B A B. The number in brackets is
the ratio of images/s divided by the ratio of operations: 1 means that every saved operation saves its time.

`--products` measures the products of the MLPs alone, in ONNX Runtime on the CPU: what is left of their rate with fewer tokens is
no fault of the graph.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from mimexport.composition import compose
from mimexport.graph import FILE, export_graph
from mimexport.keep_choices import EVERYTHING, KeepChoice, as_lines, run_in_turn, share_of_operations, speed_text
from mimexport.loading import load_any
from mimexport.options import BuildOptions
from mimruntime.cpus import available_cpus, describe_cpu
from mimruntime.engines import open_engine
from mimruntime.engines.gpu_name import gpu_name
from mimruntime.engines.onnxruntime import open_session
from mimruntime.manifest import Precision


@click.command()
@click.option("--model", "models", multiple=True, default=["mae-b16", "mae-l16"], show_default=True)
@click.option("--keep", default="75%,50%,25%", show_default=True, help="Shares of the patches.")
@click.option("--engine", "engines", multiple=True, default=["onnxruntime", "openvino"], show_default=True)
@click.option("--provider", help="Hardware of the engines.  [default: cpu]")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--batches", default="1,8", show_default=True, help="Batch sizes.")
@click.option(
    "--pairs", default=5, show_default=True, help="Number of runs of each row, in turn with the full encoder."
)
@click.option("--products", "sizes", multiple=True, metavar="DIMxDEPTH", help="Measure these products, nothing else.")
@click.option("--jobs", default=1, show_default=True, help="Number of graphs that are exported at once.")
def main(
    models: tuple[str, ...], keep: str, engines: tuple[str, ...], provider: str | None, precision: Precision,
    batches: str, pairs: int, sizes: tuple[str, ...], jobs: int,
) -> None:  # fmt: skip
    """Export every graph, measure it in every engine, and print a table for each backbone."""
    if sizes:
        for size in sizes:
            dim, depth = map(int, size.split("x"))
            measure_products(dim, depth, pairs)
        return
    counts = [int(count) for count in batches.split(",")]
    keeps = list(dict.fromkeys([EVERYTHING, *keep.split(",")]))
    hardware = gpu_name() if provider else f"{describe_cpu()}, {available_cpus()} CPUs"
    with tempfile.TemporaryDirectory(prefix="mimexport-keep-") as folder:
        wanted = [(model, keep, precision, Path(folder) / f"{model}-{keep}") for model in models for keep in keeps]
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            shares = list(pool.map(export, *zip(*wanted, strict=True)))
        for model in models:
            rows = [
                (keep, share, out) for (name, keep, _, out), share in zip(wanted, shares, strict=True) if name == model
            ]
            click.echo(f"\n{model}, {precision}, {hardware}\n")
            for line in as_lines(measure(rows, engines, provider, counts, pairs)):
                click.echo(line)


def export(model: str, keep: str, precision: Precision, out: Path) -> float:
    """Write the graph of a backbone with random weights; return its share of the full encoder's operations."""
    torch.set_num_threads(1)
    loaded = load_any(model, random_seed=0)
    network, _ = compose(loaded, BuildOptions(model=model, agg="topk", out=out, random_seed=0, keep=keep))
    share = share_of_operations(network.backbone)
    network.set_precision(precision)
    out.mkdir()
    export_graph(network, out, loaded.config["input_size"][-1])
    return share


def measure(
    rows: Sequence[tuple[str, float, Path]], engines: Sequence[str], provider: str | None, batches: Sequence[int], pairs: int
) -> list[KeepChoice]:  # fmt: skip
    """Return the speed of every graph (schedule, share of operations, folder); the others are compared with the first."""
    choices = [KeepChoice(keep, share, {}) for keep, share, _ in rows]
    for name in engines:
        with open_engine(name, rows[0][2] / FILE, provider=provider) as full:
            pixels = np.random.default_rng(0).integers(0, 256, (max(batches), *full.pixel_shape), np.uint8)
            for choice, (_, _, folder) in zip(choices, rows, strict=True):
                with open_engine(name, folder / FILE, provider=provider) as ours:
                    for size in batches:
                        speed = run_in_turn(ours, full, (pixels[:size], pixels[:size]), pairs)
                        choice.speeds[name, size] = speed
                        told = speed_text(speed, choice.operations)
                        click.echo(f"--keep {choice.keep}, {name}, batch {size}: {told}", err=True)
    return choices


def measure_products(dim: int, depth: int, pairs: int) -> None:
    """Print the rate of the products of `depth` MLPs, one image of 196 patches and [cls], by patches that are kept."""
    nodes, weights, rng = [], [], np.random.default_rng(0)
    shapes = [(dim, 4 * dim), (4 * dim, dim)] * depth
    for number, shape in enumerate(shapes):
        weights.append(numpy_helper.from_array(rng.normal(0, 0.02, shape).astype(np.float32), f"w{number}"))
        nodes.append(helper.make_node("MatMul", [f"x{number}", f"w{number}"], [f"x{number + 1}"]))
    ends = [helper.make_tensor_value_info(f"x{end}", TensorProto.FLOAT, [None, dim]) for end in (0, len(shapes))]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with tempfile.TemporaryDirectory(prefix="mimexport-products-") as folder:
        file = Path(folder) / FILE
        onnx.save(model, file)
        session = open_session(file, provider="cpu", threads=available_cpus())
    tokens = [197, 148, 99, 50]
    inputs = {count: {"x0": np.ones((count, dim), np.float32)} for count in tokens}
    seconds: dict[int, list[float]] = {count: [] for count in tokens}
    for _ in range(pairs + 1):
        for count in tokens:
            started = time.perf_counter()
            session.run(None, inputs[count])
            seconds[count].append(time.perf_counter() - started)
    rates = {
        count: statistics.median(2e-9 * count * len(shapes) * 4 * dim**2 / one for one in times[1:])
        for count, times in seconds.items()
    }
    for count, rate in rates.items():
        click.echo(
            f"{depth} MLPs of {dim}: {count} tokens: {rate:.0f} GFLOPS, {rate / rates[197]:.2f} of all tokens' rate"
        )


if __name__ == "__main__":
    main()
