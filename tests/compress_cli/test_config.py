"""RunConfig: flag > file > default, exact text for numbers, errors that name the fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress_cli.config import RunConfig, resolve
from compress_cli.errors import UsageError


def test_flag_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    file = tmp_path / "compress.toml"
    file.write_text('sparsity = 0.8\nscore = "lamp"\nignore = ["head*"]\nmax-size = "8MB"\n')
    config = resolve("prune", "m.pt", {"sparsity": "0.9", "score": None}, file)
    assert (config.sparsity, config.score, config.ignore, config.max_size) == ("0.9", "lamp", ("head*",), "8MB")
    assert config.floor == "0.02%"


def test_numbers_from_toml_keep_their_decimal_text(tmp_path: Path) -> None:
    file = tmp_path / "compress.toml"
    file.write_text("sparsity = 0.7\nlr = 1\n")
    config = resolve("prune", "m.pt", {}, file)
    assert config.sparsity == "0.7"
    assert config.lr == 1.0


def test_pyproject_table_is_read_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.compress]\nscope = "layer"\n[tool.other]\nx = 1\n')
    monkeypatch.chdir(tmp_path)
    assert resolve("prune", "m.pt", {}).scope == "layer"


@pytest.mark.parametrize(
    ("text", "message", "fix"),
    [
        ("sparsty = 0.9", "unknown key 'sparsty'", "did you mean: sparsity"),
        ('score = "l2"', "--score 'l2' is unknown", "valid: magnitude, lamp, erk"),
        ("epochs = true", "--epochs has the value True", "must be a int"),
        ("epochs = -1", "--epochs -1 is below 0", "--epochs 0 or more"),
        ("lr = 0", "--lr 0.0 is not a learning rate", "positive number"),
        ("threads = 0", "--threads 0 is below 1", "--threads 1 or more"),
        ('max_size = "8 apples"', "--max-size '8 apples' is not a limit", "8MB or 25%"),
        ("x = [", "not valid TOML", "correct the file"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, text: str, message: str, fix: str) -> None:
    file = tmp_path / "compress.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        resolve("prune", "m.pt", {}, file)
    assert message in caught.value.message
    assert fix in caught.value.fix


def test_missing_config_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        resolve("prune", "m.pt", {}, tmp_path / "none.toml")


def test_data_and_task_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--data and --task"):
        resolve("prune", "m.pt", {"data": "d", "task": "t.py"})


def test_saved_config_reads_back_equal() -> None:
    config = resolve("prune", "m.pt", {"sparsity": "0.9", "ignore": ["a", "b"], "bench": False})
    assert RunConfig.from_dict(config.to_dict() | {"key_of_a_newer_version": 1}) == config
