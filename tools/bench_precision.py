"""Measure narrower precisions: speed compared with fp32, cosine and nearest neighbours compared with torch.

    python tools/bench_precision.py photos/

int8 is measured in the form that `build` uses and in alternatives. The folder must contain some hundred real images; a fifth
is used for calibration, the others for measuring. With random weights only the speed is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantType

from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.precision_loss import load_images
from mimexport.quantize import Recipe, quantize_graph
from mimruntime.artifact import Artifact
from mimruntime.bench.measure import in_turn
from mimruntime.cpus import describe_cpu
from mimruntime.engines import open_engine
from mimruntime.errors import MimError
from mimruntime.manifest import Precision

JUDGED = ("topk", "cls")
ENGINES = ("onnxruntime", "openvino")
_BUILT = Recipe()
_UINT8 = {"activation_type": QuantType.QUInt8, "extra": {"ActivationSymmetric": False}}


@dataclass(frozen=True, slots=True)
class Form:
    """One row.

    Attributes:
        title: title of the row.
        precision: precision of the build.
        recipe: which products to quantise.
        changed: changed arguments of ONNX Runtime's `quantize_static`, with changed `extra_options` under "extra".

    """

    title: str
    precision: Precision
    recipe: Recipe = _BUILT
    changed: Mapping[str, Any] = field(default_factory=dict)


FORMS = (
    Form("fp16", "fp16"),
    Form("bf16", "bf16"),
    Form("**int8**", "int8"),
    Form("int8, first and last block too", "int8", Recipe(skip_first=0, skip_last=0)),
    Form("int8, last block too", "int8", Recipe(skip_last=0)),
    Form("int8, activations uint8", "int8", changed=_UINT8),
    Form("int8, weights of 8 bits", "int8", changed={"reduce_range": False}),
    Form("int8, entropy", "int8", changed={"calibrate_method": CalibrationMethod.Entropy}),
    *(
        Form(
            f"int8, percentile {percentile}",
            "int8",
            changed={"calibrate_method": CalibrationMethod.Percentile, "extra": {"CalibPercentile": percentile}},
        )
        for percentile in (99.9, 99.99, 99.999)
    ),
)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default="mae-tiny", show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--pairs", default=15, show_default=True)
@click.option("--chosen", is_flag=True, help="Only fp16, bf16 and int8 in the form that build uses.")
def main(folder: Path, model: str, batch: int, pairs: int, chosen: bool) -> None:
    """Build every form, and print a table."""
    seed = None if model == "mae-tiny" else 0
    with tempfile.TemporaryDirectory() as name:
        wide = build(BuildOptions(model=model, agg="topk", out=Path(name) / "fp32", random_seed=seed))
        pixels = load_images(folder, wide.manifest.preprocess)[1][:batch]
        click.echo(f"{describe_cpu()}; {model}, batch {len(pixels)}, {pairs} pairs in turn; speed of topk to fp32\n")
        judged = [f"{agg}: worst / median cosine, neighbours kept" for agg in JUDGED if seed is None]
        click.echo(f"| precision | {' | '.join([*judged, *ENGINES])} |\n|{'---|' * (1 + len(judged) + len(ENGINES))}")
        for number, form in enumerate(FORMS[: 3 if chosen else None]):
            out = Path(name) / str(number)  # own folder per form: a rejected build leaves nothing to time
            cells = [form.title]
            for agg in JUDGED if seed is None else JUDGED[:1]:
                try:
                    artifact = build_form(
                        form,
                        BuildOptions(
                            model=model, agg=agg, out=out / agg, precision=form.precision, calibrate=folder,
                            random_seed=seed,
                        ),
                    )  # fmt: skip
                except MimError as error:
                    cells.append(f"refused: {error}")
                    continue
                if seed is None:
                    found = artifact.manifest.conversion
                    cells.append(
                        f"{found.worst_cosine:.4f} / {found.median_cosine:.5f}, {100 * found.neighbour_overlap:.1f} %"
                    )
            cells += [_speed(engine, out / JUDGED[0], wide, pixels, pairs) for engine in ENGINES]
            click.echo(f"| {' | '.join(cells)} |")


def build_form(form: Form, options: BuildOptions) -> Artifact:
    """Build the artifact of `options` with int8 in the form of `form`."""
    static = quantization.quantize_static

    def changed(*given: Any, **options: Any) -> None:
        extra = options["extra_options"] | form.changed.get("extra", {})
        static(*given, **(options | {k: v for k, v in form.changed.items() if k != "extra"} | {"extra_options": extra}))

    with (
        mock.patch("mimexport.pipeline.quantize_graph", partial(quantize_graph, recipe=form.recipe)),
        mock.patch.object(quantization, "quantize_static", changed),
    ):
        return build(options)


def _speed(engine: str, narrow: Path, wide: Artifact, pixels: np.ndarray, pairs: int) -> str:
    try:
        with open_engine(engine, Artifact.open(narrow).graph) as ours, open_engine(engine, wide.graph) as theirs:
            for one in (ours, theirs):
                one.run(pixels)  # to warm up
            (found,) = in_turn(("", ours, len(pixels)), [("", theirs, len(pixels))], pixels, pairs)
    except MimError:
        return "does not run"
    return f"{found.ratio:.2f} ({found.low:.2f} to {found.high:.2f})"


if __name__ == "__main__":
    main()
