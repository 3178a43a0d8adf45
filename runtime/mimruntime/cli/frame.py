"""Run the commands of `mimexport`: handle signals, print errors in one line, set exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
from typing import NoReturn

import click

from mimruntime.cli.command import WIDTH, Program
from mimruntime.cli.printing import one_line
from mimruntime.errors import MimError
from mimruntime.exit import leave

INTERRUPTED, TERMINATED = 130, 143


def run(commands: Iterable[click.Command], argv: Sequence[str] | None = None, *, obj: object = None) -> NoReturn:
    """Run the program `mimexport` with these commands, and exit; `obj` becomes click's context object.

    Exit codes: 0 success; 1 error, printed in one line on stderr (`--debug` before `--` prints the traceback); 2 wrong
    usage; 130 Ctrl-C; 143 SIGTERM, after temporary files were removed.
    """
    arguments, debug = _without_debug(sys.argv[1:] if argv is None else list(argv))
    if not sys.warnoptions:  # warnings about damaged EXIF data do not help the user
        warnings.filterwarnings("ignore", module=r"PIL\.")
    with contextlib.suppress(ValueError):  # only the main thread may set a handler
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    code = _exit_code(make_program(commands), arguments, obj, debug=debug)
    if argv is None:
        leave(code)
    sys.exit(code)


def _exit_code(program: click.Group, arguments: list[str], obj: object, *, debug: bool) -> int:
    """Run the program, print errors on stderr, and return the exit code."""
    try:
        code = program.main(arguments, prog_name="mimexport", standalone_mode=False, obj=obj)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit as error:
        code = error.code
    except BrokenPipeError:
        _close_stdout()
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            click.echo(f"error: {_one_line(error)}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def make_program(commands: Iterable[click.Command]) -> click.Group:
    """Return the click program."""
    program = Program(
        commands=list(commands),
        help="From a timm ViT to an image embedder that runs anywhere.",
        params=[click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the trace of an error.")],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
    )
    return click.version_option(package_name="mimexport")(program)


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Remove `--debug` anywhere before `--`, because users append it to a command that failed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return kept + arguments[end:], len(kept) < end


def _one_line(error: Exception) -> str:
    text = (
        str(error)
        if isinstance(error, MimError)
        else f"unexpected {type(error).__name__}: {error} (--debug says where)"
    )
    printable = text.encode("utf-8", "backslashreplace").decode()
    return one_line(" ".join(printable.splitlines()))


def _close_stdout() -> None:
    """Redirect stdout to the null device, so that the flush at exit does not raise BrokenPipeError again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
