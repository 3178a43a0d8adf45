"""The command `mimexport compile`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mimruntime.cli.command import Command, gather, group, option
from mimruntime.cli.options import COUNT, PATH

if TYPE_CHECKING:
    from mimruntime.engines.options import CompileOptions, Hint


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSettings:
    """Options of a compilation, as on the command line; see `mimruntime.engines.options.CompileOptions`."""

    provider: str | None = None
    batch: str | None = None
    hint: Hint | None = None
    threads: int | None = None
    arch: str | None = None
    hardware_compat: str | None = None
    tf32: bool = False
    workspace: float | None = None
    timing_cache: Path | None = None

    @property
    def given(self) -> bool:
        """Whether any option was given."""
        return self != CompileSettings()

    def options(self, engine: str, precision: str | None = None) -> CompileOptions:
        """Return the parsed options for `engine`.

        Raises:
            OptionError: `batch` is not MIN,BEST,MAX.

        """
        from mimruntime.engines.options import CompileOptions, parse_batch

        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain["arch"] = tuple(part.strip() for part in self.arch.split(",")) if self.arch else ()
        plain["batch"] = parse_batch(self.batch) if self.batch else None
        return CompileOptions(engine=engine, precision=precision, **plain)


def compile_options(title: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options of `CompileSettings`, passed as argument `compiling`."""
    options = group(
        title,
        option("--provider", help="Hardware, by the engine's name: cpu, cuda.  [default: its first]"),
        option(
            "--batch",
            metavar="MIN,BEST,MAX",
            help="Batch sizes; a CPU uses only BEST.  [default: measured; GPU 1,8,32]",
        ),
        option(
            "--hint",
            type=click.Choice(["throughput", "latency"]),
            metavar="AIM",
            help="On a CPU: tune for throughput or latency.",
        ),
        option("--threads", type=COUNT, help="CPU threads.  [default: measured]"),
        option("--arch", metavar="SM,…", help="tensorrt-rtx: GPUs, such as sm86,sm89.  [default: sm80 and later]"),
        option(
            "--hardware-compat",
            type=click.Choice(["none", "ampere+", "same"]),
            metavar="SET",
            help="tensorrt: other GPUs to support: none, ampere+ or same.",
        ),
        option("--tf32", is_flag=True, help="tensorrt, tensorrt-rtx: fp32 products with a 10-bit mantissa."),
        option("--workspace", type=float, metavar="GB", help="tensorrt, tensorrt-rtx: the builder's scratch memory."),
        option("--timing-cache", type=PATH, metavar="FILE", help="tensorrt: kernel timings, read and written."),
    )
    return lambda function: options(gather(lambda: CompileSettings, "compiling")(function))


@click.command(
    "compile",
    cls=Command,
    section="Deploy",
    examples=(
        "mimexport compile artifacts/mae-tiny-topk --engine openvino",
        "mimexport compile artifacts/mae-tiny-topk --engine tensorrt-rtx --arch sm86,sm89 --batch 1,8,32",
    ),
)
@click.argument("artifact", type=PATH)
@group(
    "Engine",
    option("--engine", required=True, help="onnxruntime, openvino, tensorrt or tensorrt-rtx."),
    option("--precision", type=click.Choice(["fp32", "bf16"]), help="openvino: precision of an fp32 graph's products."),
)
@compile_options("Compilation")
def compile_command(artifact: Path, engine: str, precision: str | None, compiling: CompileSettings) -> None:
    """Compile an artifact for an engine, and measure the best batch and threads.

    The result is ARTIFACT/engines/KEY.
    """
    run_compile(artifact, compiling.options(engine, precision))


def run_compile(artifact: Path, options: CompileOptions) -> None:
    """Compile an artifact and print the result."""
    from mimruntime.engines.compilation import compile_artifact

    compiled = compile_artifact(artifact, options, _show_progress())
    record = compiled.record
    click.echo(f"{compiled.folder}: {record.engine} {record.version}, {record.precision} on {record.provider}")
    click.echo(f"  for {record.hardware}")
    if record.tuned is not None:
        for trial in record.trials:
            mark = "  <- taken" if trial == record.tuned else ""
            click.echo(
                f"  batch {trial.batch:<3} {trial.threads} threads, {trial.streams} streams:"
                f" {trial.images_per_second:.1f} images/s{mark}"
            )


def _show_progress() -> Callable[[str, int, int], None]:
    """Return a function that shows progress on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        return lambda *_: None

    def show(phase: str, done: int, steps: int) -> None:
        click.echo(f"\r\x1b[K  {phase}: {done} of {steps}", nl=done >= steps, err=True)

    return show
