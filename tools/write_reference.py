"""Write the pages of docs/reference/ that are generated from the code; `--check` reports stale ones.

python tools/write_reference.py

The command line comes from click, the Python API from docstrings, backbones and their licences from the table of aliases,
environment variables from the options of `mimexport serve`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import click

import mimeval
import mimexport
import mimruntime
from mimexport.aliases import ALIASES
from mimexport.cli import COMMANDS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
MARKER = "<!-- written by tools/write_reference.py, below this line -->"
WIDTH = 100
"""Width of help texts in columns."""

API: list[tuple[ModuleType, tuple[str, ...]]] = [
    (mimexport, ("build", "fit")),
    (mimruntime, ("Embedder", "Result", "BatchEmbedder", "verify", "compile_engine", "read_vectors", "Vectors")),
    (mimeval, ("evaluate", "compare")),
]
"""Packages to document; their `_HOMES` has the module of each name."""


def pages() -> dict[Path, str]:
    """Return the complete text of each generated page."""
    written = {
        "command-line.md": command_line(),
        "python.md": python_api(),
        "backbones.md": backbones(),
        "environment.md": environment(),
    }
    found = {}
    for name, text in written.items():
        path = REFERENCE / name
        prose = path.read_text(encoding="utf-8").split(MARKER)[0] if path.exists() else f"# {path.stem}\n\n"
        found[path] = f"{prose}{MARKER}\n\n{text.rstrip()}\n"
    return found


def stale() -> list[str]:
    """Return a line for each stale page."""
    return [
        f"{path.relative_to(ROOT)}: differs from the code; run: python tools/write_reference.py"
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def command_line() -> str:
    """Return the help of all commands."""
    parts = []
    for command in sorted(COMMANDS, key=lambda each: each.name or ""):
        context = click.Context(
            command,
            info_name=f"mimexport {command.name}",
            terminal_width=WIDTH,
            max_content_width=WIDTH,
            help_option_names=["-h", "--help"],
            **command.context_settings,
        )
        parts.append(f"## mimexport {command.name}\n\n```text\n{context.get_help().rstrip()}\n```\n")
    return "\n".join(parts)


def environment() -> str:
    """Return a table of the options of `mimexport serve` as environment variables."""
    serve = next(command for command in COMMANDS if command.name == "serve")
    rows = []
    for option in serve.params:
        if isinstance(option, click.Option) and option.name not in {"check", "help"}:
            named = option.envvar if isinstance(option.envvar, str) else None
            variable = named or f"MIMEXPORT_{(option.name or '').upper()}"
            rows.append(f"| `{variable}` | `{option.opts[0]}` | {(option.help or '').strip()} |")
    return "\n".join(["| variable | option | meaning |", "|---|---|---|", *rows])


def backbones() -> str:
    """Return a table of the backbones with a short name."""
    rows = [
        f"| `{name}` | `{a.timm_name}` | {a.size} | {a.patch} | {a.tokens} | {a.dim} | {a.license} | {a.note} |"
        for name, a in ALIASES.items()
    ]
    head = "| name | timm | input, px | patch, px | tokens | width | licence of the weights | note |"
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows])


def python_api() -> str:
    """Return signatures and docstrings of all public functions and classes."""
    parts = []
    for package, names in API:
        for name in names:
            source = Path(str(find_spec(package._HOMES[name]).origin))  # type: ignore[union-attr]
            tree = ast.parse(source.read_text(encoding="utf-8"))
            found = (
                each for each in tree.body if isinstance(each, ast.FunctionDef | ast.ClassDef) and each.name == name
            )
            parts += describe(f"{package.__name__}.{name}", next(found))
    return "\n".join(parts)


def describe(name: str, node: ast.FunctionDef | ast.ClassDef) -> Iterator[str]:
    """Yield the lines about a function, or about a class and its public methods."""
    yield f"## {name}\n" if isinstance(node, ast.ClassDef) or name.count(".") == 1 else f"### {name}\n"
    if isinstance(node, ast.FunctionDef):
        yield f"```text\n{signature(name, node)}\n```\n"
    yield from docstring(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
                yield from describe(f"{name}.{each.name}", each)


def signature(name: str, node: ast.FunctionDef) -> str:
    """Return a signature, with one parameter per line if there are more than two."""
    arguments = [each for each in ast.unparse(node.args).split(", ") if each not in {"self", "cls"}]
    joined = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list):
        return f"{name}{returned.replace('->', ':')}".replace(" :", ":")
    if len(arguments) <= 2:  # a type with a comma counts as two, which only breaks the line earlier
        return f"{name}({joined}){returned}"
    lines = re.split(r", (?=\*|\w+[:=]|\w+$)", joined)
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + f"){returned}"


def docstring(text: str) -> Iterator[str]:
    """Yield a docstring in Google's form as Markdown."""
    for block in text.split("\n\n"):
        title, _, rest = block.partition("\n")
        if title in {"Args:", "Returns:", "Raises:", "Attributes:"}:
            yield f"**{title[:-1]}**\n"
            yield "\n".join(items(rest)) + "\n"
        elif block.startswith(">>>"):
            yield f"```pycon\n{block}\n```\n"
        else:
            yield f"{block}\n"


def items(text: str) -> Iterator[str]:
    """Yield a list item per entry of a section; a more indented line continues the entry before it."""
    entries: list[str] = []
    for line in text.splitlines():
        deeper = line.startswith("     ") or not re.match(r"\s*[\w, *]+: ", line)
        if entries and deeper:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    for entry in entries:
        name, colon, meaning = entry.partition(": ")
        yield f"- `{name}`: {meaning}" if colon and re.fullmatch(r"[\w, *]+", name) else f"- {entry}"


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with status 1 if a page is stale.")
def main(check: bool) -> None:
    """Write the generated pages."""
    if check:
        lines = stale()
        click.echo("\n".join(lines) or "generated pages are up to date")
        sys.exit(bool(lines))
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        click.echo(f"{path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
