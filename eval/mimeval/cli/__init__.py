"""The commands of the evaluation, one file each."""

from __future__ import annotations

from mimeval.cli.compare import compare_command
from mimeval.cli.eval import eval_command
from mimeval.cli.known_answers import known_answers_command
from mimruntime.cli.command import Command

COMMANDS: list[Command] = [eval_command, compare_command, known_answers_command]
"""The commands of this package, for the program `mimexport`."""
