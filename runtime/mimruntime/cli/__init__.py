"""The commands of the runtime, one file each, and the frame that runs every command of `mimexport`."""

from __future__ import annotations

from mimruntime.cli.browse import browse_command
from mimruntime.cli.command import Command
from mimruntime.cli.compile import compile_command
from mimruntime.cli.doctor import doctor_command
from mimruntime.cli.embed import embed_command
from mimruntime.cli.export_triton import export_triton_command
from mimruntime.cli.frame import run
from mimruntime.cli.inspect import inspect_command
from mimruntime.cli.keygen import keygen_command
from mimruntime.cli.search import search_command
from mimruntime.cli.select import select_command
from mimruntime.cli.serve import serve_command
from mimruntime.cli.sign import sign_command
from mimruntime.cli.verify import verify_command

COMMANDS: list[Command] = [
    doctor_command,
    inspect_command,
    verify_command,
    embed_command,
    search_command,
    browse_command,
    select_command,
    serve_command,
    compile_command,
    export_triton_command,
    keygen_command,
    sign_command,
]
"""What the program `mimexport` gathers from this package; `mimruntime.cli.bench` makes one more."""

__all__ = ["COMMANDS", "run"]
