"""The walls between the packages hold, and each guard is seen to fail on a planted violation."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


def lint_imports(root):
    """Run import-linter on the tree at `root`, and not on the installed one."""
    code = f"import sys; sys.path[:0] = [{', '.join(repr(str(root / side)) for side in ('export', 'runtime', 'eval'))}]"
    code += "; from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    return subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def tree(tmp_path):
    for side in ("export", "runtime", "eval"):
        shutil.copytree(ROOT / side, tmp_path / side, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(tree):
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("runtime/mimruntime/preprocess.py", "import torch"),
        ("runtime/mimruntime/parity.py", "import mimexport.aliases"),
        ("export/mimexport/card.py", "import mimeval"),
        ("eval/mimeval/__init__.py", "import mimexport.aliases"),
    ],
)
def test_a_planted_import_breaks_a_contract(tree, module, planted):
    path = tree / module
    path.write_text(path.read_text() + f"\n{planted}\n")
    done = lint_imports(tree)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout


@pytest.mark.parametrize("side", ["runtime/mimruntime", "eval/mimeval"])
@pytest.mark.parametrize("library", ["torch", "timm", "onnx", "safetensors"])
def test_ruff_refuses_the_torch_side_outside_of_export(side, library):
    command = [BIN / "ruff", "check", "--stdin-filename", f"{side}/planted.py", "--select", "TID251", "-"]
    done = subprocess.run(command, cwd=ROOT, input=f"import {library}\n", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "TID251" in done.stdout


def test_ruff_lets_the_export_side_have_it():
    command = [BIN / "ruff", "check", "--stdin-filename", "export/mimexport/x.py", "--select", "TID251", "-"]
    assert subprocess.run(command, cwd=ROOT, input="import torch\n", text=True, check=False).returncode == 0


def circles(root):
    """Return the circles of modules in each package at `root`, imports for types alone included."""
    code = """
import sys
sys.path[:0] = [f"{sys.argv[1]}/{side}" for side in ("export", "runtime", "eval")]
import grimp
graph = grimp.build_graph("mimexport", "mimruntime", "mimeval", cache_dir=None)
left = set(graph.modules)
while free := [one for one in left if not graph.find_modules_directly_imported_by(one) & left]:
    left.difference_update(free)
while free := [one for one in left if not graph.find_modules_that_directly_import(one) & left]:
    left.difference_update(free)
print(*sorted(left))
"""
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_no_modules_import_one_another_in_a_circle(tree):
    assert circles(tree) == []
    lower = tree / "runtime/mimruntime/engines/base.py"
    lower.write_text(
        lower.read_text() + "\nif TYPE_CHECKING:\n    from mimruntime.engines.compiled import list_compiled\n"
    )
    assert circles(tree) == ["mimruntime.engines.base", "mimruntime.engines.compiled"]
