"""The direction of imports (design.md section 2) and the start-up rule: help imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from compress_cli.app import VERBS, run

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = {
    "pruners": {"profilers"},
    "decomposers": {"profilers"},
    "exporters": {"profilers"},
    "profilers": set(),
}
PACKAGES = {*LIBRARIES, "compress_cli"}


def imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_library_imports_only_what_lies_below_it(library: str) -> None:
    files = sorted((ROOT / library).rglob("*.py"))
    assert files
    forbidden = {"typer", "rich"} | (PACKAGES - LIBRARIES[library] - {library})
    found = {str(file.relative_to(ROOT)): imported(file) & forbidden for file in files}
    assert {name: bad for name, bad in found.items() if bad} == {}


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_library_prints_nothing(library: str) -> None:
    calls = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / library).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_no_help_imports_torch() -> None:
    calls = [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]
    code = (
        "import sys\n"
        "from compress_cli.app import run\n"
        f"for arguments in {calls!r}:\n"
        "    code = run(arguments)\n"
        "    heavy = {'torch', 'torchvision', 'onnx', 'onnxruntime', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "    if code or heavy:\n"
        "        sys.stderr.write(f'{arguments}: {code} {sorted(heavy)}\\n')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stderr == ""
    assert all(verb in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_shows_an_example_and_fits_80_columns(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    assert run([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"compress {verb}" in shown
    assert "Example" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_shell_completion_does_not_import_torch() -> None:
    code = (
        "import os, sys\n"
        "os.environ.update(_COMPRESS_COMPLETE='complete_bash', COMP_WORDS='compress pr', COMP_CWORD='1')\n"
        "from compress_cli.app import run\n"
        "import atexit\n"
        "atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n"
        "run([])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "prune" in result.stdout
    assert result.stderr.endswith("False")
