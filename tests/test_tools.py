"""Every command in tools/ starts: its imports are there, and it prints its help."""

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

TOOLS = sorted(path.stem for path in (Path(__file__).parents[1] / "tools").glob("*.py"))


@pytest.mark.parametrize("name", TOOLS)
def test_a_tool_imports_and_prints_its_help(name):
    try:
        tool = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":  # in the extra `parquet`
            raise
        pytest.skip("pip install 'mimexport[parquet]'")
    if command := getattr(tool, "main", None):
        assert isinstance(command, click.Command)
        done = CliRunner().invoke(command, ["--help"])
        assert done.exit_code == 0, done.output
        assert command.help
