"""The command line as its help shows it: a screen a command, options in groups, examples that parse, nothing lost."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mimexport.cli import COMMANDS
from mimruntime.cli.frame import make_program

SCREEN = 50
COLUMNS = 100
PROGRAM = make_program(COMMANDS)
KNOWN = Path(__file__).parent / "data" / "command_line.txt"
every_command = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


def screen(*arguments):
    """The help as a terminal of 100 columns shows it."""
    done = CliRunner().invoke(PROGRAM, [*arguments, "--help"], prog_name="mimexport", terminal_width=COLUMNS)
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


def parse(example):
    """Parse a command line as the program does, and run nothing."""
    program, name, *arguments = shlex.split(example)
    assert program == "mimexport"
    return PROGRAM.commands[name].make_context(name, arguments)


def test_every_command_and_option_of_before_is_there():
    for line in KNOWN.read_text().splitlines():
        name, *options = line.split()
        there = {opt for each in PROGRAM.commands[name].params for opt in (*each.opts, *each.secondary_opts)}
        assert {option for option in options if option.startswith("--")} <= there, name


@every_command
def test_the_help_fits_a_screen(command):
    lines = screen(command.name)
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= COLUMNS


@every_command
def test_every_option_has_one_line_in_a_group(command):
    lines = screen(command.name)
    rows = [i for i, line in enumerate(lines) if line.startswith("  --")]
    assert len(rows) == sum(isinstance(each, click.Option) for each in command.params)
    for i in rows:
        assert re.fullmatch(r"  --\S+( [^a-z]\S*)*  +\S.*", lines[i]), lines[i]
        assert re.match(r"  --|\S.*:$|$", lines[i + 1]), "the text goes on in a second line"
        assert re.match(r"  --|\S.*:$", lines[i - 1]), "no title above it"


@every_command
def test_the_help_ends_with_examples_that_parse(command):
    lines = screen(command.name)
    examples = lines[lines.index("Examples:") + 1 :]
    assert len(examples) >= 2
    for example in examples:
        assert parse(example).info_name == command.name


def test_an_example_with_an_option_that_is_gone_is_found():
    with pytest.raises(click.UsageError, match="No such option"):
        parse("mimexport inspect artifacts/a --yaml")


def test_the_program_starts_without_what_its_commands_import():
    heavy = {"msgspec", "numpy", "PIL", "torch", "timm", "onnx", "sklearn"}
    script = f"import sys, mimexport.cli; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_program_lists_every_command_on_one_line():
    lines = screen()
    assert len(lines) <= SCREEN
    for command in COMMANDS:
        (line,) = (line for line in lines if line.startswith(f"  {command.name} "))
        assert command.help.startswith(line.split(maxsplit=1)[1])
    for example in PROGRAM.examples:
        assert parse(example)
        assert f"  {example}" in lines
