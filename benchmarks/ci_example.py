"""Carry out the CI example in a scratch git repository and write what it printed to `examples/ci/README.md`.

A pruned ResNet-20 is the model on `main`; one change prunes it further (passes), another exports it with dense weights
(fails). The git hook and the workflow's command run for real.

    python benchmarks/ci_example.py CHECKPOINTS [--work DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "ci"
CHANGES = (("prune it further", "0.9", "auto"), ("ship dense weights", "0.9", "dense"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="ci-example-"))
    try:
        checkpoint = (arguments.checkpoints / "cifar10-resnet20.th").resolve()
        files = [model(checkpoint, sparsity, weights, work / name) for name, sparsity, weights in versions()]
        text = "\n".join(["# The examples, carried out", "", INTRODUCTION, *transcript(work / "repository", files)])
        (EXAMPLES / "README.md").write_text(text + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(work, ignore_errors=True)


INTRODUCTION = """`python benchmarks/ci_example.py CHECKPOINTS` writes this page: a scratch repository with the hook and
the `pyproject.toml` of this folder, a ResNet-20 with 80 % zeros as the model on `main`, one change that passes and
one that does not. The gates compare with the last commit's file; the Markdown is what the workflow posts as a comment.
"""


def versions() -> list[tuple[str, str, str]]:
    return [("start", "0.8", "auto"), *CHANGES]


def model(checkpoint: Path, sparsity: str, weights: str, folder: Path) -> Path:
    words = [
        "prune",
        str(checkpoint),
        "--arch",
        str(ROOT / "examples/cifar_resnet.py:resnet20"),
        "--input-shape",
        "3x32x32",
    ]
    command(
        [*compress(), *words, "--sparsity", sparsity, "--weights", weights, "--no-bench", "-q", "-o", str(folder)], ROOT
    )
    return folder / "model.onnx"


def compress() -> list[str]:
    return [sys.executable, "-m", "compress_cli"]


def command(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def transcript(folder: Path, files: list[Path]) -> list[str]:
    (folder / "models").mkdir(parents=True)
    command(["git", "init", "-q", "-b", "main"], folder)
    for name, value in (("user.name", "example"), ("user.email", "example@example.invalid")):
        command(["git", "config", name, value], folder)
    shutil.copy(EXAMPLES / "pyproject.toml", folder)
    shutil.copy(files[0], folder / "models/model.onnx")
    command(["git", "add", "."], folder)
    command(["git", "commit", "-qm", "the model"], folder)
    shutil.copy(EXAMPLES / "pre-commit", folder / ".git/hooks/pre-commit")
    lines: list[str] = []
    for (title, _, _), file in zip(CHANGES, files[1:], strict=True):
        shutil.copy(file, folder / "models/model.onnx")
        command(["git", "add", "."], folder)
        checked = command(
            [
                *compress(),
                "check",
                "models/model.onnx",
                "--baseline",
                "git:HEAD:models/model.onnx",
                "--markdown",
                "comment.md",
            ],
            folder,
        )
        hooked = command(["git", "commit", "-qm", title], folder)
        comment = (folder / "comment.md").read_text(encoding="utf-8")
        (folder / "comment.md").unlink()
        printed = "\n".join(line.rstrip() for line in checked.stdout.strip().splitlines())
        lines += [f"## {title.capitalize()}", "", "    $ python -m compress_cli check models/model.onnx \\"]
        lines += ["        --baseline git:HEAD:models/model.onnx --markdown comment.md"]
        lines += [f"    {line}".rstrip() for line in printed.splitlines()]
        lines += [
            "",
            f"Exit code {checked.returncode}; `git commit` with the hook: exit code {hooked.returncode}. The comment:",
            "",
        ]
        lines += [f"> {line}".rstrip() for line in comment.strip().splitlines()] + [""]
    return lines


if __name__ == "__main__":
    main()
