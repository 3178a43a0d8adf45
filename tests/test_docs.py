"""What the documentation shows: every command line parses, every Python block compiles, those that need no network run."""

import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from unittest import mock

import click
import numpy as np
import pytest
from click.testing import CliRunner

import mimeval
import mimexport
from mimexport.cli import COMMANDS
from mimruntime.artifact import Artifact
from mimruntime.errors import MimError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = (
    "README.md", "docs/tutorial.md", "docs/how-to/build.md", "docs/how-to/vector-stores.md",
    "docs/how-to/embed-a-collection.md", "docs/how-to/smaller-vectors.md", "docs/how-to/own-checkpoint.md",
    "docs/how-to/evaluate.md", "docs/how-to/processes.md", "docs/reference/errors.md",
)  # fmt: skip
"""Pages whose Python blocks run here. `build` and `evaluate`, which take minutes, are stand-ins that check the arguments."""
ELSEWHERE = {"docs/how-to/serve.md": "tests/runtime/serve/test_page.py"}
"""Pages whose Python blocks need a service, and the tests that run them."""
COMPILED = {"docs/how-to/explore.md"}
"""Pages whose Python blocks need programs that are not among the extras: they are only compiled."""
NOT_RUN = "import Celery"
"""A block that needs a broker: it is compiled."""

sys.path.append(str(ROOT / "tools"))
import check_docs  # noqa: E402


def blocks(page, *languages):
    """Return the fenced blocks of a page in these languages."""
    text = page.read_text(encoding="utf-8")
    return [code for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S) if language in languages]


def shell_lines():
    for page in PAGES:
        for block in blocks(page, "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip():
                    yield page.relative_to(ROOT).as_posix(), line.strip()


LINES = sorted(set(shell_lines()))


@pytest.fixture(scope="module")
def commands():
    return {command.name: command for command in COMMANDS}


def test_every_command_line_is_one_the_program_takes(commands):
    lines = [(page, line) for page, line in LINES if line.startswith("mimexport ")]
    assert len(lines) > 50
    anywhere = mock.patch.object(click.Path, "convert", lambda self, value, *_: Path(value))
    for page, line in lines:
        name, *arguments = shlex.split(line, comments=True)[1:]
        assert name in commands, f"{page}: {line}"
        try:
            with anywhere:
                commands[name].make_context(f"mimexport {name}", arguments)
        except click.ClickException as error:
            pytest.fail(f"{page}: {line}: {error.format_message()}")


def test_a_line_with_an_option_that_does_not_exist_is_noticed(commands):
    with pytest.raises(click.NoSuchOption):
        commands["build"].make_context("mimexport build", ["--model", "mae-tiny", "--aggregator", "topk"])


def test_every_other_line_names_what_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page, line in LINES:
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, f"{page}: {line}"
        if words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file(), f"{page}: {line}"
        for named in re.findall(r"(?:mimexport|'\.)\[([\w,-]+)\]", line):
            assert set(named.split(",")) <= set(extras), f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_python_block_compiles(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


@pytest.fixture
def workplace(tmp_path, toy_artifact, photos, commands):
    """A folder with the artifacts, photographs and vectors that pages speak of."""
    for name in ("mae-tiny-topk", "with-selection", "first"):
        shutil.copytree(toy_artifact, tmp_path / "artifacts" / name)
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg", "photos/a.jpg"):
        shutil.copy(photos[0], tmp_path / name)
    (tmp_path / "broken.jpg").write_text("not an image")
    images = [str(path) for path in (tmp_path / "broken.jpg", *photos)]
    done = CliRunner().invoke(commands["embed"], [str(toy_artifact), *images, "--out", str(tmp_path / "vectors.npz")])
    assert done.exit_code == 0, done.output
    return tmp_path


def test_every_page_with_python_blocks_is_run():
    pages = {path.relative_to(ROOT).as_posix() for path in PAGES if blocks(path, "python")}
    assert pages == {*RUN, *ELSEWHERE, *COMPILED}
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())


@pytest.mark.parametrize("page", RUN)
def test_the_python_blocks_of_a_page_run(page, workplace):
    code = [block for block in blocks(ROOT / page, "python") if NOT_RUN not in block]
    assert code
    built = mock.create_autospec(mimexport.build, side_effect=lambda *_, **__: Artifact.open("artifacts/mae-tiny-topk"))
    evaluated = mock.create_autospec(mimeval.evaluate)
    with (
        contextlib.chdir(workplace),
        mock.patch("mimexport.build", built, create=True),
        mock.patch("mimeval.evaluate", evaluated, create=True),
    ):
        for block in code:
            names = {"__name__": "page", "paths": ["photos/a.jpg"]}
            exec(compile(block, page, "exec"), names)
            for vectors in (names[name] for name in ("vectors", "query") if name in names):
                assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
            if app := names.get("app"):
                image = {"wsgi.input": io.BytesIO(Path("photos/a.jpg").read_bytes())}
                assert len(json.loads(app(image, mock.Mock())[0])["vector"]) == 16


def test_every_curl_line_names_an_endpoint_and_every_workflow_a_target_that_are_there():
    http = (ROOT / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    lines = [(page, line) for page, line in LINES if line.startswith("curl ")]
    assert len(lines) >= 4
    for page, line in lines:
        assert re.search(r"localhost:8000(/[\w/]+)", line)[1] in http, f"{page}: {line}"
    verbs = [
        verb for page in PAGES for block in blocks(page, "yaml") for verb in re.findall(r"run: make ([\w-]+)", block)
    ]
    assert verbs
    assert set(verbs) <= targets


def test_the_page_of_errors_names_every_error():
    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    for module in ("mimruntime.errors", "mimexport.errors", "mimeval.errors"):
        importlib.import_module(module)
    shipped = {kind.__name__ for kind in below(MimError) if kind.__module__.endswith(".errors")}
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^\| `(\w+)` \|", page, re.M)} == shipped - {"MimError"}


@pytest.mark.slow
def test_an_edited_figure_and_a_page_of_results_without_date_are_found(tmp_path, monkeypatch):
    files = check_docs.tables()
    names = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"README.md", "docs/results/aggregators.md", "docs/results/early-selection.md"} < names
    assert [*check_docs.stale_tables(files), *check_docs.without_date()] == []
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    page = tmp_path / "docs" / "results" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text(files[ROOT / "README.md"][0].replace("10.8 (+2.3", "10.9 (+2.3"))
    assert [*check_docs.stale_tables({page: files[ROOT / "README.md"]})] == [
        "docs/results/page.md: differs from the stored results; run: python tools/aggregator_tables.py"
    ]
    assert [line.split(":")[0] for line in check_docs.without_date()] == ["docs/results/page.md"]


def test_a_broken_link_a_missing_heading_and_a_page_outside_the_menu_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(check_docs, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n[good](page.md#a-page) [gone](other.md) [no heading](page.md#b)\n")
    assert [line.split(": ")[1] for line in check_docs.broken_links([page])] == [
        "link to other.md, which does not exist",
        "link to page.md#b, a heading that does not exist",
    ]
    (tmp_path / "README.md").write_text("x" * (check_docs.README_BYTES + 1))
    assert len(list(check_docs.too_large([page]))) == 1
    (tmp_path / "docs").mkdir()
    page.rename(tmp_path / "docs" / "page.md")
    (tmp_path / "mkdocs.yml").write_text("nav:\n  - other.md\n")
    assert [line.split(":")[0] for line in check_docs.outside_the_site()] == ["docs/page.md"]


def test_sentences_are_counted_in_prose_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title. Here\n\nOne two. Three\nfour.\n\n- Five.\n\n| six. | Seven. |\n\n```sh\nEight. Nine.\n```\n"
    )
    assert list(check_docs.sentences_of(page)) == ["One two.", "Three four.", "Five."]


def test_a_generated_page_that_was_edited_is_found(tmp_path, monkeypatch):
    import write_reference

    monkeypatch.setattr(write_reference, "ROOT", tmp_path)
    monkeypatch.setattr(write_reference, "REFERENCE", tmp_path)
    monkeypatch.setattr(write_reference, "python_api", lambda: "as it is")
    for path, text in write_reference.pages().items():
        path.write_text(text, encoding="utf-8")
    assert write_reference.stale() == []
    edited = tmp_path / "python.md"
    edited.write_text(edited.read_text(encoding="utf-8").replace("as it is", "as it was"), encoding="utf-8")
    assert [line.split(":")[0] for line in write_reference.stale()] == ["python.md"]
