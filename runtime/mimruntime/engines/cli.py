"""The command `mimexport compile`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from mimruntime.engines.options import CompileOptions

_Command = TypeVar("_Command", bound=Callable[..., object])


COMPILE_OPTIONS = (
    "provider", "batch", "hint", "threads", "arch", "hardware_compat", "tf32", "workspace", "timing_cache",
)  # fmt: skip
"""Names of what `compile_options` adds."""


def compile_options(command: _Command) -> _Command:
    """Add the options of a compilation, but `--engine` and `--precision`."""
    for option in (
        click.option(
            "--timing-cache", type=click.Path(path_type=Path), metavar="FILE", help="tensorrt: kernel timings."
        ),
        click.option(
            "--workspace", type=float, metavar="GB", help="tensorrt, tensorrt-rtx: scratch memory of the builder."
        ),
        click.option("--tf32", is_flag=True, help="tensorrt, tensorrt-rtx: fp32 products with 10 bits of mantissa."),
        click.option("--hardware-compat", type=click.Choice(["none", "ampere+", "same"]), help="tensorrt: other GPUs."),
        click.option(
            "--arch", metavar="SM,…", help="tensorrt-rtx: GPUs, for example sm86,sm89.  [default: sm80 and later]"
        ),
        click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: measured]"),
        click.option("--hint", type=click.Choice(["throughput", "latency"]), help="openvino: what to tune for."),
        click.option(
            "--batch",
            metavar="MIN,BEST,MAX",
            help="Images of one run; on a CPU only BEST counts.  [default: measured; 1,8,32 for a plan]",
        ),
        click.option("--provider", help="Hardware, by the engine's own name."),
    ):
        command = option(command)
    return command


@click.command(name="compile")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--engine", required=True, help="onnxruntime, openvino, tensorrt or tensorrt-rtx.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), help="openvino: of an fp32 graph's products.")
@compile_options
def compile_command(artifact: Path, engine: str, **given: Any) -> None:
    """Compile an artifact's graph for an engine, and measure the best batch and threads, into ARTIFACT/engines/."""
    run_compile(artifact, make_options(engine, given))


def make_options(engine: str, given: dict[str, Any]) -> CompileOptions:
    """Return what the options of `compile_options` say."""
    from mimruntime.engines.options import CompileOptions, parse_batch

    arch, batch = given.pop("arch"), given.pop("batch")
    return CompileOptions(
        engine=engine,
        arch=tuple(part.strip() for part in arch.split(",")) if arch else (),
        batch=parse_batch(batch) if batch else None,
        **given,
    )


def run_compile(artifact: Path, options: CompileOptions) -> None:
    """Compile, and print what came of it."""
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


COMMANDS: list[click.Command] = [compile_command]
"""What the program `mimexport` gathers from this package."""


def _show_progress() -> Callable[[str, int, int], None]:
    """Return what draws a bar per phase on stderr, when that is a terminal."""
    if not sys.stderr.isatty():
        return lambda *_: None

    def show(phase: str, done: int, steps: int) -> None:
        click.echo(f"\r\x1b[K  {phase}: {done} of {steps}", nl=done >= steps, err=True)

    return show
