"""The regression gate: compare artifacts of both embedded backbones, on every engine here, with the baseline.

The exit status is the verdict: 0 pass, 1 fail (or an error, in one line), 3 undecided; 2 is wrong usage.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, get_args

import click
import torch

from mimeval.cli.progress import ConsoleProgress
from mimeval.datasets import Dataset, open_dataset
from mimeval.datasets.crops import open_crops
from mimeval.deployments import SkippedDeployment, parse_engines
from mimeval.evaluation import EvalOptions, evaluate
from mimeval.feature_store import FeatureStore
from mimeval.models import find_baselines
from mimeval.regression import compare, read_baseline, write_baseline
from mimeval.report import Report
from mimeval.report_files import write_reports
from mimeval.verdict import EXIT
from mimexport.aggregators import AGGREGATORS
from mimexport.heads import embedded_heads, load_head
from mimexport.options import BuildOptions
from mimexport.pipeline import build
from mimexport.provenance import code_digest
from mimexport.references import References
from mimruntime.artifact import MANIFEST, Artifact
from mimruntime.cpus import available_cpus, describe_cpu
from mimruntime.errors import MimError, MissingExtraError, UnknownNameError
from mimruntime.manifest import Precision, TokenNorm
from mimruntime.writing import write_file


class Plan(NamedTuple):
    """The images and artifacts of a backbone in the gate.

    Attributes:
        images: number of test images in torch.
        deployed: number of these images on every engine.
        training: number of training images, in torch.
        narrow: artifacts that are judged in all `precisions`; the others only in fp32.
        keep: `--keep` and `--keep-by` of the artifact whose encoder drops patches.
        precisions: precisions of the artifacts in `narrow`.
        only: artifacts besides the baseline; empty means all.
        cls_norm: token norm of the [cls] from which gains are counted; None takes that of the build.
    """

    images: int
    deployed: int
    training: int
    narrow: tuple[str, ...]
    keep: tuple[str, str]
    precisions: tuple[Precision, ...] = get_args(Precision)
    only: tuple[str, ...] = ()
    cls_norm: TokenNorm | None = None


PLANS = {
    # One head of each kind in every precision: other heads of the kind have the same graph, and heads stay in fp32.
    "mae-tiny": Plan(4000, 500, 6000, ("cls", "mean", "topk", "abmilp", "ep"), ("50%@4", "center-norm")),
    # An image takes four times the work, and the gain is twice as large, so fewer images decide. fp16 is left out, since
    # a CPU rounds only the weights in it.
    "mae-small": Plan(
        1000, 400, 2000, ("cls", "topk"), ("50%", "center-checkerboard"), ("fp32", "bf16", "int8"),
        only=("topk", "abmilp-unlabelled", "topk-keep50"), cls_norm="raw",
    ),
}  # fmt: skip
PLAIN = ("cls", "mean", "topk")
KEPT = "topk-keep50"
"""The artifact whose encoder drops half of the patches."""
BASELINE = Path("eval/baseline.json")
SHARED = Path("../shared/data/tiny-imagenet-64.zip")
TABLE_MARKER = "<!-- written by `make eval-table`, below this line -->"
CALIBRATION = "calibration"
"""Folder of photographs, beside the artifacts."""
MARGIN = 0.01
"""One point of k-NN accuracy, less than half of the smallest gain that is judged."""


@click.command()
@click.option(
    "--data", help="Data set.  [default: Tiny ImageNet if it lies beside the checkout, else synthetic images (drawn)]"
)
@click.option("--model", "models", multiple=True, type=click.Choice([*PLANS]), default=[*PLANS], show_default=True)
@click.option("--images", type=click.IntRange(min=1), help="Number of test images in torch.  [default: by backbone]")
@click.option("--deployed", type=click.IntRange(min=0), help="Number of these on every engine; 0 for all.")
@click.option("--training", type=click.IntRange(min=1), help="Number of training images, in torch.")
@click.option(
    "--own/--no-own", default=False, help="Also fit on every engine's own training features; takes many times as long."
)
@click.option("--engine", "engines", multiple=True, default=("all",), show_default=True, help="NAME or NAME:PRECISION.")
@click.option("--metric", "metrics", multiple=True, default=("knn", "retrieval"), show_default=True)
@click.option("--only", multiple=True, help="Names of artifacts besides the baseline.  [default: all]")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("~/.cache/mimexport"), show_default=True)
@click.option(
    "--artifacts", "folder", type=click.Path(path_type=Path), default=Path("artifacts/eval"), show_default=True
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports/engines"), show_default=True)
@click.option("--write-baseline", "rewrite", is_flag=True, help="Replace the baseline by this result.")
@click.option("--table", type=click.Path(path_type=Path), help="Also write the table into this page, below its marker.")
def main(
    data: str | None, models: tuple[str, ...], images: int | None, deployed: int | None, training: int | None, own: bool,
    engines: tuple[str, ...], metrics: tuple[str, ...], only: tuple[str, ...], cache: Path, folder: Path, out: Path,
    rewrite: bool, table: Path | None,
) -> None:  # fmt: skip
    """Run the gate."""
    if rewrite and (only or engines != ("all",)):
        raise click.UsageError("--write-baseline replaces all rows; leave out --only and --engine")
    if table and len(models) > 1:
        raise click.UsageError("--table takes one backbone: --model NAME")
    shown = ConsoleProgress()
    verdicts = []
    try:
        for model in models:
            plan = PLANS[model]
            spec = data or (f"zip:{SHARED}" if SHARED.is_file() else "drawn")
            dataset = open_dataset(
                spec, cache=cache.expanduser(), limit=images or plan.images, train_limit=training or plan.training
            )
            judging = EvalOptions(
                metrics=metrics,
                deployed=(plan.deployed if deployed is None else deployed) or None,
                own=own,
                margin=MARGIN,
            )
            built, skipped = build_all(model, folder, only, shown)
            report = judge(built, dataset, engines, judging, cache, shown)
            report.skipped.extend(skipped)
            if rewrite:
                write_baseline(report, BASELINE)
            report = compare(report, read_baseline(BASELINE), part=bool(only) or engines != ("all",))
            text = write_reports(report, out.with_name(f"{out.name}-{model}"))
            if table:
                write_table(text, table, model)
            click.echo(text)
            verdicts.append(report.verdict)
    except (MimError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(EXIT[next(verdict for verdict in ("fail", "undecided", "pass") if verdict in verdicts)])


def write_table(text: str, page: Path, model: str) -> None:
    """Write `text` below the marker of a page; keep the prose above it. A new page begins with date, machine and command."""
    today = time.strftime("%Y-%m-%d")
    prose = (
        f"# Does the gain of {model} survive in every engine?\n\n"
        f"Measured on {today}: {describe_cpu()}, `make eval-table MODEL={model}`.\n\n"
    )
    if page.exists():
        prose = page.read_text(encoding="utf-8").split(TABLE_MARKER)[0]
    write_file(page, f"{prose}{TABLE_MARKER}\n\n{text}".encode())


def judge(
    built: Sequence[Artifact], dataset: Dataset, engines: Sequence[str], options: EvalOptions, cache: Path,
    shown: ConsoleProgress,
) -> Report:  # fmt: skip
    """Evaluate the artifacts of one backbone against its [cls]; fail if [cls] with the other norm is shown to be stronger."""
    baselines, _ = find_baselines(built)
    return evaluate(
        built,
        baselines,
        dataset,
        parse_engines(engines),
        open_references=References().open,
        store=FeatureStore(cache.expanduser() / "features", shown.say, shown.progress),
        options=options,
        # Fixed: of two equally good [cls], another machine might choose the other, and its rows would not match the baseline.
        fixed={artifact.manifest.embedding_space for artifact in baselines},
    )


def build_all(
    model: str, folder: Path, only: tuple[str, ...], shown: ConsoleProgress,
    precisions: Collection[Precision] = get_args(Precision),
) -> tuple[list[Artifact], list[SkippedDeployment]]:  # fmt: skip
    """Build the artifacts of a backbone, or reuse those that the same code built.

    Args:
        model: a name in `PLANS`.
        folder: the folder of the artifacts.
        only: names of artifacts to build in every precision; if empty, those of the plan.
        shown: shows the progress.
        precisions: precisions to build, of those planned.
    """
    home = folder / code_digest()
    for stale in set(folder.glob("[0-9a-f]" * len(home.name))) - {home}:
        shutil.rmtree(stale)
    possible = list(_possible(model, home / model, home / CALIBRATION))
    wanted = [options for options in planned(model, possible, only) if options.precision in precisions]
    calibration_images(home / CALIBRATION)
    built, skipped = [], []
    new = [options for options in wanted if not (options.out / MANIFEST).is_file()]
    new.sort(key=lambda options: options.precision != "int8")  # start the longest builds first
    # An export uses one thread and about 1 GB.
    with ProcessPoolExecutor(
        min(4, available_cpus()), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        building = {options.out: pool.submit(build, options) for options in new}
        try:
            for done, options in enumerate(wanted):
                shown.progress(f"building {model}", done, len(wanted))
                try:
                    if options.out in building:
                        building[options.out].result()
                    built.append(Artifact.open(options.out))
                except MissingExtraError as error:
                    skipped.append(
                        SkippedDeployment(options.out.name, options.precision, f"not built: {error}", "missing")
                    )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    shown.progress(f"building {model}", len(wanted), len(wanted))
    return built, skipped


def planned(model: str, possible: Sequence[BuildOptions], only: Sequence[str]) -> list[BuildOptions]:
    """Return which of the `possible` artifacts are built; see `build_all`.

    Raises:
        UnknownNameError: `only` has an unknown name.

    """
    plan = PLANS[model]
    known = {options.out.name for options in possible if options.precision == "fp32"}
    for name in only:
        if name not in known:
            raise UnknownNameError("artifact of the gate", name, known)
    names = {*(only or plan.only or known), "cls"}
    if any(name.endswith("-whitened") for name in names):
        names.add("cls-whitened")
    narrow, precisions = (names, get_args(Precision)) if only else (plan.narrow, plan.precisions)
    named = [(options.out.name.split(".")[0], options) for options in possible]
    return [
        options
        for name, options in named
        if name in names and (options.precision == "fp32" or (name in narrow and options.precision in precisions))
    ]


def calibration_images(folder: Path) -> None:
    """Fill `folder` with photographs for int8 calibration: crops from installed packages, for every data set."""
    if not folder.is_dir():
        images = open_crops().test
        stage = folder.with_name(f".{folder.name}.partial")
        stage.mkdir(parents=True, exist_ok=True)
        for row in range(len(images)):
            (stage / f"{row:04}.png").write_bytes(images.load(row))
        stage.rename(folder)


def _possible(model: str, home: Path, photos: Path) -> Iterator[BuildOptions]:
    """Yield the plain aggregators, one that drops patches early, and all embedded heads; heads without weights whiten."""
    plan = PLANS[model]
    for precision in get_args(Precision):
        suffix = "" if precision == "fp32" else f".{precision}"
        calibrate = photos if precision == "int8" else None
        common = BuildOptions(model=model, agg="cls", out=home, precision=precision, calibrate=calibrate)
        for agg in PLAIN:
            norm = plan.cls_norm if agg == "cls" else None
            yield _selected(replace(common, agg=agg, token_norm=norm, out=home / f"{agg}{suffix}"))
        count, rule = plan.keep
        kept = replace(common, agg="topk", keep=count, keep_by=rule, out=home / f"{KEPT}{suffix}")
        yield _selected(kept)
        for name, path in embedded_heads(model).items():
            head = load_head(path)
            learned = bool(head.tensors)
            if precision != "fp32" and not learned:
                # Whitening magnifies the loss of [cls], the baseline of the others, so the build refuses it.
                continue
            yield _selected(
                replace(
                    common,
                    agg=head.agg,
                    agg_options=head.params,
                    head=name,
                    whiten=None if learned else 0,
                    out=home / f"{name if learned else f'{name}-whitened'}{suffix}",
                )
            )


def _selected(options: BuildOptions) -> BuildOptions:
    return replace(options, with_selection=AGGREGATORS[options.agg].has_weights)


if __name__ == "__main__":
    main()
