"""Check README and docs/: links, unfinished merges, sizes, long sentences, the menu, dates of measurements, stale pages.

python tools/check_docs.py            # exit status 1 if something is wrong
python tools/check_docs.py --long     # also print the long sentences
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import aggregator_tables
import click
import frontier_page
from write_reference import MARKER, ROOT, stale

README_BYTES = 6144
MOST_LINES = 250
"""Largest number of lines of a page outside `results/`, without generated parts."""
LONG_WORDS = 30
MOST_LONG = 0.05
"""Largest share of sentences with more words."""
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
WRITTEN = re.compile(r"<!-- written by .*?below this line -->")
MEASURED = re.compile(r"# [^\n]+\n\n(Measured|Looked up) on \d{4}-\d{2}-\d{2}: [^`\n]+, `[^`\n]+`\.\n")
"""Title and first line of a page in docs/results/: date, machine, command."""


@click.command()
@click.option("--long", "show_long", is_flag=True, help="Print the long sentences.")
def main(show_long: bool) -> None:
    """Print problems, and exit with status 1 if there are any."""
    files = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
    wrong = [
        *broken_links(files),
        *unmerged(files),
        *too_large(files),
        *outside_the_site(),
        *without_date(),
        *stale(),
        *stale_tables(tables()),
    ]
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
    """Yield a line for each link to a missing file or heading."""
    for path in files:
        for target in LINK.findall(without_code(path.read_text(encoding="utf-8"))):
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (path.parent / name).resolve() if name else path
            if not there.exists():
                yield f"{path.relative_to(ROOT)}: link to {target}, which does not exist"
            elif anchor and anchor not in anchors(there):
                yield f"{path.relative_to(ROOT)}: link to {target}, a heading that does not exist"


def unmerged(files: list[Path]) -> Iterator[str]:
    """Yield a line for each page that holds both sides of a merge."""
    for path in files:
        if re.search(r"^(<{7}|>{7}) ", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield f"{path.relative_to(ROOT)}: holds the marks of a merge that was not finished"


def anchors(path: Path) -> set[str]:
    """Return the ids of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


def too_large(files: list[Path]) -> Iterator[str]:
    """Yield a line if README.md has too many bytes, and for each page with too many lines."""
    size = (ROOT / "README.md").stat().st_size
    if size > README_BYTES:
        yield f"README.md: {size} bytes, expected at most {README_BYTES}"
    for path in files:
        lines = WRITTEN.split(path.read_text(encoding="utf-8"))[0].count("\n")
        if lines > MOST_LINES and "results" not in path.parts and path.name != "CHANGELOG.md":
            yield f"{path.relative_to(ROOT)}: {lines} lines, expected at most {MOST_LINES}"


def outside_the_site() -> Iterator[str]:
    """Yield a line for each page that is missing in the menu of the site."""
    menu = set(re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if path.relative_to(ROOT / "docs").as_posix() not in menu:
            yield f"{path.relative_to(ROOT)}: not in the menu; add it to `nav` in mkdocs.yml"


def without_date() -> Iterator[str]:
    """Yield a line for each page of results that does not begin with date, machine and command."""
    for path in sorted((ROOT / "docs" / "results").glob("*.md")):
        if path.name != "README.md" and not MEASURED.match(path.read_text(encoding="utf-8")):
            yield (
                f"{path.relative_to(ROOT)}: the line below the title does not say date, machine and command; expected:"
                " Measured on YYYY-MM-DD: MACHINE, `COMMAND`."
            )


def tables() -> dict[Path, tuple[str, str]]:
    """Return the complete text of each file with tables from stored results, and the tool that writes it."""
    results = ROOT / "docs" / "results"
    found = {path: (text, "aggregator_tables") for path, text in aggregator_tables.written(results).items()}
    return found | {results / frontier_page.PAGE: (frontier_page.written(results), "frontier_page")}


def stale_tables(files: dict[Path, tuple[str, str]]) -> Iterator[str]:
    """Yield a line for each file whose tables differ from the stored results."""
    for path, (text, tool) in files.items():
        if path.read_text(encoding="utf-8") != text:
            yield f"{path.relative_to(ROOT)}: differs from the stored results; run: python tools/{tool}.py"


def sentences_of(path: Path) -> Iterator[str]:
    """Yield the sentences of a page's prose, without code, tables, headings and generated parts."""
    text = without_code(WRITTEN.split(path.read_text(encoding="utf-8"))[0].split(MARKER)[0])
    text = LINK.sub(lambda link: link.group(0).split("](", 1)[0].lstrip("!["), text)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|---|<|\$)|    ", line)]
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines)):
        joined = re.sub(r"^([-*]|\d+\.) ", "", " ".join(block.split()))
        yield from (each for each in re.split(r"(?<=[.!?:])\**\s+(?=[A-Z`\[*(])", joined) if each.strip())


def without_code(text: str) -> str:
    """Return a page without fenced code blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", text, flags=re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    main()
