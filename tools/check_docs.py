"""Check README and docs/: links, sizes, long sentences, the site's menu, and that generated pages are what the code says.

python tools/check_docs.py            # exit status 1 where something is wrong
python tools/check_docs.py --long     # also print the long sentences
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from write_reference import MARKER, ROOT, stale

README_BYTES = 6144
MOST_LINES = 250
"""Of a page outside `results/` and of what no command wrote."""
LONG_WORDS = 30
MOST_LONG = 0.05
"""Share of sentences longer than that."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
WRITTEN = re.compile(r"<!-- written by .*?below this line -->")


@click.command()
@click.option("--long", "show_long", is_flag=True, help="Print the sentences that are long.")
def main(show_long: bool) -> None:
    """Print what is wrong, and exit with 1 where anything is."""
    files = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    wrong = [*broken_links(files), *too_large(files), *outside_the_site(), *stale()]
    sentences = [(path, each) for path in files if path.name != "CHANGELOG.md" for each in sentences_of(path)]
    long = [(path, each) for path, each in sentences if len(each.split()) > LONG_WORDS]
    if len(long) > MOST_LONG * len(sentences):
        share = 100 * len(long) / len(sentences)
        wrong.append(
            f"{len(long)} of {len(sentences)} sentences ({share:.1f} %) have more than {LONG_WORDS} words,"
            f" expected at most {100 * MOST_LONG:.0f} %; run: python tools/check_docs.py --long"
        )
    if show_long:
        click.echo("\n".join(f"{path.relative_to(ROOT)}: {each}" for path, each in long))
    click.echo("\n".join(wrong) or f"docs: {len(files)} pages, {len(sentences)} sentences, {len(long)} of them long")
    sys.exit(bool(wrong))


def broken_links(files: list[Path]) -> Iterator[str]:
    """Yield a line for every link to a file, or to a heading, that is not there."""
    for path in files:
        for target in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (path.parent / name).resolve() if name else path
            if not there.exists():
                yield f"{path.relative_to(ROOT)}: link to {target}, which is not there"
            elif anchor and anchor not in anchors(there):
                yield f"{path.relative_to(ROOT)}: link to {target}, a heading that is not there"


def anchors(path: Path) -> set[str]:
    """Return the ids that headings of a page get."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


def too_large(files: list[Path]) -> Iterator[str]:
    """Yield a line for a README of too many bytes and for every page of too many lines."""
    size = (ROOT / "README.md").stat().st_size
    if size > README_BYTES:
        yield f"README.md: {size} bytes, expected at most {README_BYTES}"
    for path in files:
        lines = WRITTEN.split(path.read_text(encoding="utf-8"))[0].count("\n")
        if lines > MOST_LINES and "results" not in path.parts and path.name != "CHANGELOG.md":
            yield f"{path.relative_to(ROOT)}: {lines} lines, expected at most {MOST_LINES}"


def outside_the_site() -> Iterator[str]:
    """Yield a line for every page that the menu of the site lacks."""
    menu = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if path.relative_to(ROOT / "docs").as_posix() not in menu:
            yield f"{path.relative_to(ROOT)}: not in the menu; add it to `nav` in mkdocs.yml"


def sentences_of(path: Path) -> Iterator[str]:
    """Yield the sentences of a page's prose: no code, tables, headings, nor what a command wrote."""
    text = without_code(WRITTEN.split(path.read_text(encoding="utf-8"))[0].split(MARKER)[0])
    text = LINK.sub(lambda link: link.group(0).split("](", 1)[0].lstrip("!["), text)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|---|<|\$)|    ", line)]
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines)):
        joined = re.sub(r"^([-*]|\d+\.) ", "", " ".join(block.split()))
        yield from (each for each in re.split(r"(?<=[.!?:])\**\s+(?=[A-Z`\[*(])", joined) if each.strip())


def without_code(text: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", text, flags=re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    main()
