"""Measure the speedup of each optimisation of the graph.

    python tools/bench_graph.py --model mae-b16 photos/

A ratio is images/s of the deployed graph divided by images/s without the optimisation: the median of pairs A B A B.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import click
import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx.inliner import inline_local_functions

from mimexport.blocks import ClosedBlock, OpenBlock, take
from mimexport.features import ComputedFeatures
from mimexport.options import BuildOptions
from mimexport.patches import OpenPatchEmbed
from mimexport.pipeline import build
from mimruntime.artifact import Artifact
from mimruntime.bench.measure import in_turn
from mimruntime.cpus import available_cpus, describe_cpu
from mimruntime.decode import decode
from mimruntime.engines import onnxruntime, open_engine
from mimruntime.errors import ImageError
from mimruntime.image_paths import find_images
from mimruntime.preprocess import to_pixels

BATCH = 4
LEFT_OUT = onnxruntime.LEFT_OUT["cpu"]
OPTIMIZERS = (
    "AttentionFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion", "CommonSubexpressionElimination", "ConstantFolding",
    "FastGeluFusion", "GeluFusionL1", "GeluFusionL2", "LayerNormFusionL1", "LayerNormFusionL2", "MatMulAddFusion",
    "MatMulScaleFusion", "MatmulTransposeFusion", "NchwcTransformer", "QuickGeluFusion", "SkipLayerNormFusion",
    "TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider",
)  # fmt: skip
"""Names of ONNX Runtime's optimisations that apply to vision transformers."""


class Session:
    """A session with some optimisations disabled."""

    def __init__(self, graph: Path, without: Iterable[str] = LEFT_OUT, level: str = "ORT_ENABLE_ALL") -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = available_cpus()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            self._session = ort.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=[*without]
            )
            nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
        self.operators = Counter(node.op_type for node in nodes)

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs of one batch."""
        return {"embedding": self._session.run(["embedding"], {"pixels": pixels})[0]}

    def close(self) -> None:
        """Close the session."""
        del self._session


@click.command()
@click.argument("folders", nargs=-1, required=True)
@click.option("--model", default="mae-b16", show_default=True, help="A VisionTransformer.")
@click.option("--pairs", default=9, show_default=True)
@click.option("--k", default="75%", show_default=True, help="Number or share of selected patches.")
def main(folders: tuple[str, ...], model: str, pairs: int, k: str) -> None:
    """Build the artifact in each form, and print a table."""
    seed = None if model == "mae-tiny" else 0
    with tempfile.TemporaryDirectory() as name:

        def form(title: str) -> Artifact:
            out = Path(name) / title
            return build(BuildOptions(model=model, agg="topk", agg_options={"k": k}, out=out, random_seed=seed))

        whole = form("whole")
        with mock.patch.object(ComputedFeatures, "mean_of", _mean_of_all):
            full = form("full")
        with mock.patch.object(OpenBlock, "mean", ClosedBlock.mean):
            averaged_last = form("averaged last")
        with mock.patch("mimexport.backbone.open_block", lambda block, **_: ClosedBlock(block)):
            packed = form("packed")
        with mock.patch.object(OpenBlock, "_fold_norms"):
            unfolded = form("unfolded")
        with mock.patch.object(OpenPatchEmbed, "fits", return_value=False):
            convolved = form("convolved")
        pixels = photographs(folders, whole)
        click.echo(f"{describe_cpu()}; {model}, topk of {k}, fp32, batch {BATCH}, ONNX Runtime {ort.__version__}\n")
        click.echo("| part | ratio | middle half |\n|---|---|---|")
        for part, ours, theirs in (
            ("reduced last block", whole.graph, full.graph),
            ("of that, the mean before the MLP's last product", whole.graph, averaged_last.graph),
            (
                "query, key and value by themselves, against timm's packed product",
                write_out(full, "opened"),
                packed.graph,
            ),
            ("norms' scale and shift in the products after them", whole.graph, unfolded.graph),
            ("patches as one product, against a convolution", whole.graph, convolved.graph),
            ("attention as one operator", whole.graph, write_out(whole, "written out")),
        ):
            for engine in ("onnxruntime", "openvino"):
                with open_engine(engine, ours) as a, open_engine(engine, theirs) as b:
                    show(f"{part}, {engine}", a, b, pixels, pairs)
        for title, ours, make in variants(whole.graph):
            theirs = make()
            show(title, ours, theirs, pixels, pairs)
            theirs.close()


def _mean_of_all(features: ComputedFeatures, index: torch.Tensor) -> torch.Tensor:
    """Compute `ComputedFeatures.mean_of` from the block's complete output."""
    return take(features.patches, index).mean(1)


def write_out(artifact: Artifact, title: str) -> Path:
    """Return a copy of the artifact's graph with attention as separate nodes."""
    target = artifact.path.with_name(f"{title}.onnx")
    onnx.save(inline_local_functions(onnx.load(artifact.graph)), target)
    return target


def variants(graph: Path) -> Iterator[tuple[str, Session, Callable[[], Session]]]:
    """Yield each optimisation that changes this graph: description, session with it, and factory of a session without it."""
    whole = Session(graph)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED"):
        yield f"all optimisations, against {level}", whole, lambda level=level: Session(graph, level=level)
    for name in OPTIMIZERS:
        without = Session(graph, {*LEFT_OUT} ^ {name})
        if without.operators != whole.operators:
            made, lost = whole.operators - without.operators, without.operators - whole.operators
            title = f"`{name}`{' left out' if name in LEFT_OUT else ''}: {_listed(made)} in place of {_listed(lost)}"
            yield title, whole, lambda without=without: without


def show(title: str, ours: object, theirs: object, pixels: np.ndarray, pairs: int) -> None:
    """Print a row."""
    for one in (ours, theirs):
        one.run(pixels)  # to warm up
    (found,) = in_turn(("", ours, BATCH), [("", theirs, BATCH)], pixels, pairs)
    click.echo(f"| {title} | {found.ratio:.3f} | {found.low:.3f} to {found.high:.3f} |")


def photographs(folders: tuple[str, ...], artifact: Artifact) -> np.ndarray:
    """Return a batch of real images, uint8 (BATCH, H, W, 3)."""
    found = []
    for path in find_images(folders):
        try:
            found.append(to_pixels(decode(path), artifact.manifest.preprocess))
        except ImageError:  # skip files that are not images
            continue
    return np.stack(found[:BATCH])


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"


if __name__ == "__main__":
    main()
