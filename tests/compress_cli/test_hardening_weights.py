"""Bad input to `compress prune`: odd files, values, types and shapes of weights, and impossible wishes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress_cli.checkpoint import read_tensors
from tests.compress_cli.checkpoint.checkpoint_files import save_torch, weights, write_net
from tests.compress_cli.hard_runs import FINISHED, Runner

HALF = ("--sparsity", "0.5")


@pytest.fixture
def runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(tmp_path, capsys)


def zeros(tensors: dict[str, Tensor], *names: str) -> int:
    return sum(int((tensors[name] == 0).sum()) for name in names)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_truncated_and_empty_files(runner: Runner, tmp_path: Path, share: float) -> None:
    whole = save_torch(tmp_path / "whole.pt", weights()).read_bytes()
    file = tmp_path / "w.pt"
    file.write_bytes(whole[: int(len(whole) * share)])
    runner.refused(file, *HALF, code=3, says="is empty (0 bytes)" if not share else "cut short or damaged")


def test_a_file_that_is_not_there(runner: Runner, tmp_path: Path) -> None:
    save_torch(tmp_path / "net.pt", weights())
    runner.refused(tmp_path / "nett.pt", *HALF, code=3, says=f"did you mean {tmp_path / 'net.pt'}?")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_name_the_tensor(runner: Runner, tmp_path: Path, value: float) -> None:
    state = weights()
    state["fc.weight"][0, 0] = value
    runner.refused(save_torch(tmp_path / "w.pt", state), *HALF, code=3, says="fc.weight: holds NaN or infinity")


@pytest.mark.parametrize("name", ["fc.bias", "bn.running_var"])
def test_nan_in_a_bias_or_statistic_is_refused_too(runner: Runner, tmp_path: Path, name: str) -> None:
    state = weights()
    state[name][0] = float("nan")
    runner.refused(save_torch(tmp_path / "w.pt", state), *HALF, code=3, says=f"{name} holds NaN")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_types_stay_what_they_are(runner: Runner, tmp_path: Path, dtype: torch.dtype) -> None:
    outcome = runner.prune(save_torch(tmp_path / "w.pt", weights(dtype)), *HALF)
    assert outcome.code == 0
    written = read_tensors(runner.out / "model.pt").tensors
    assert {tensor.dtype for name, tensor in written.items() if not name.endswith("tracked")} == {dtype}
    assert zeros(written, "conv.weight", "fc.weight") == 58
    kept = written["conv.weight"] != 0
    assert torch.equal(written["conv.weight"][kept], weights(dtype)["conv.weight"][kept])


def test_half_precision_with_an_architecture(runner: Runner, tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", weights(torch.float16))
    outcome = runner.prune(file, *HALF, "--arch", f"{write_net(tmp_path)}:make", "--input-shape", "3x8x8")
    assert outcome.code == 0
    assert read_tensors(runner.out / "model.pt").tensors["fc.weight"].dtype is torch.float16
    assert outcome.document["complexity_after"]["macs"] == 6 * 6 * 27 * 4 + 8


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"a.weight": torch.ones(3, 3, dtype=torch.int64)}, "1 x element type int64"),
        ({"a.weight": torch.ones(3, 3).to(torch.float8_e4m3fn)}, "1 x element type float8_e4m3fn"),
        ({"a.weight": torch.zeros(0, 3)}, "1 x no elements"),
        ({"a.bias": torch.ones(3)}, "1 x bias"),
    ],
    ids=["integers", "fp8", "zero-size", "a bias"],
)
def test_files_without_a_rankable_weight(runner: Runner, tmp_path: Path, state: dict[str, Tensor], why: str) -> None:
    outcome = runner.refused(save_torch(tmp_path / "w.pt", state), *HALF, code=3, says="no weight to prune")
    assert why in outcome.message
    assert ("convert the weights to float32" in outcome.message) == why.startswith("1 x element type")


def test_integer_zero_size_and_scalar_tensors_beside_others_are_carried_along(runner: Runner, tmp_path: Path) -> None:
    state = {
        "table": torch.arange(6).reshape(2, 3),
        "none.weight": torch.zeros(0, 4),
        "scale": torch.tensor(2.0),
        "fc.weight": torch.arange(1.0, 17).reshape(4, 4),
    }
    outcome = runner.prune(save_torch(tmp_path / "w.pt", state), *HALF)
    assert outcome.code == 0
    written = read_tensors(runner.out / "model.pt").tensors
    assert list(written) == list(state)
    assert written["table"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert written["none.weight"].shape == (0, 4)
    assert written["fc.weight"].flatten().tolist() == [0.0] * 8 + [float(value) for value in range(9, 17)]
    reasons = {item["name"]: item["reason"] for item in outcome.document["skipped"]}
    assert reasons["table"] == "element type int64"
    assert reasons["none.weight"] == "no elements"


def test_shared_weights_are_ranked_once_and_stay_shared(runner: Runner, tmp_path: Path) -> None:
    table = torch.arange(1.0, 17).reshape(4, 4)
    outcome = runner.prune(save_torch(tmp_path / "w.pt", {"a.weight": table, "b.weight": table}), *HALF)
    assert outcome.document["achieved"][0]["out_of"] == 16
    written = read_tensors(runner.out / "model.pt").tensors
    assert written["a.weight"].data_ptr() == written["b.weight"].data_ptr()
    assert zeros(written, "a.weight") == 8


def test_weights_that_are_all_zero_or_all_equal(runner: Runner, tmp_path: Path) -> None:
    flat = runner.prune(save_torch(tmp_path / "w.pt", {"a.weight": torch.ones(8, 8)}), *HALF)
    assert flat.document["achieved"][0]["count"] == 32
    empty = Runner(tmp_path / "second", runner.capsys).prune(
        save_torch(tmp_path / "z.pt", {"a.weight": torch.zeros(8, 8)}), *HALF
    )
    assert empty.code == 0
    assert any("zero already" in warning for warning in empty.document["warnings"])


@pytest.mark.parametrize("sparsity", ["0", "0%", "0.0"])
def test_sparsity_0_changes_nothing(runner: Runner, tmp_path: Path, sparsity: str) -> None:
    state = {name: tensor + 1 for name, tensor in weights().items()}
    outcome = runner.prune(save_torch(tmp_path / "w.pt", state), f"--sparsity={sparsity}")
    assert outcome.code == 0
    assert outcome.document["achieved"][0]["count"] == 0
    written = read_tensors(runner.out / "model.pt").tensors
    assert all(torch.equal(written[name], state[name]) for name in state)


@pytest.mark.parametrize(
    ("sparsity", "says"),
    [
        ("1", "would leave no weight"),
        ("1.0", "would leave no weight"),
        ("100%", "would leave no weight"),
        ("1.5", "would leave no weight"),
        ("150%", "would leave no weight"),
        ("-0.1", "is negative"),
        ("ninety", "is not a number"),
        ("nan", "is not a number"),
        ("inf", "is not a number"),
        ("", "is not a number"),
    ],
)
def test_impossible_sparsities_are_usage_errors(runner: Runner, tmp_path: Path, sparsity: str, says: str) -> None:
    file = save_torch(tmp_path / "w.pt", weights())
    runner.refused(file, f"--sparsity={sparsity}", code=2, says=says)


def test_a_sparsity_above_what_the_floor_allows_names_the_largest(runner: Runner, tmp_path: Path) -> None:
    outcome = runner.refused(
        save_torch(tmp_path / "w.pt", weights()), "--sparsity", "99.9999%", code=2, says="the largest possible is 0.98"
    )
    largest = outcome.document["error"]["fix"].split()[1]
    assert runner.prune(tmp_path / "w.pt", "--sparsity", largest).code == 0


def test_training_flags_without_data_are_warned_of(runner: Runner, tmp_path: Path) -> None:
    outcome = runner.prune(save_torch(tmp_path / "w.pt", weights()), *HALF, "--epochs", "3")
    assert outcome.code == 0
    assert "--epochs 3: nothing is trained without --data or --task" in outcome.document["warnings"]


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there(runner: Runner, tmp_path: Path, device: str) -> None:
    outcome = runner.prune(save_torch(tmp_path / "w.pt", weights()), *HALF, "--device", device)
    assert outcome.code in (2, 3)
    assert device in outcome.message
    assert outcome.files == set()


def test_no_sparsity_at_all(runner: Runner, tmp_path: Path) -> None:
    runner.refused(save_torch(tmp_path / "w.pt", weights()), code=2, says="such as --sparsity 0.9")


@pytest.mark.parametrize("flag", ["--ignore", "--only"])
def test_patterns_that_match_nothing_are_errors_with_close_names(runner: Runner, tmp_path: Path, flag: str) -> None:
    file = save_torch(tmp_path / "w.pt", weights())
    outcome = runner.refused(file, *HALF, flag, "fcc*", code=2, says="pattern 'fcc*' matches no tensor")
    assert "fc" in outcome.document["error"]["fix"]


def test_the_same_folder_can_be_used_after_a_mistake(runner: Runner, tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", weights())
    runner.refused(file, *HALF, "--ignore", "nothing", code=2, says="matches no tensor")
    assert runner.prune(file, *HALF, "--ignore", "fc").files == FINISHED


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--score", "taylor"), "--score taylor ranks channels"),
        (("--scope", "isomorphic"), "--scope isomorphic ranks channels"),
        (("--score", "lampp"), "did you mean lamp?"),
        (("--sparsty", "0.5"), "No such option: --sparsty"),
        (("--seed", "-1"), "--seed -1 is below 0"),
        (("--epochs", "many"), "Invalid value for '--epochs'"),
        (("--input-shape", "3x0x8"), "--input-shape '3x0x8' is not a shape"),
        (("--arch", "resnet18"), "did you mean torchvision:resnet18?"),
        (("--max-size", "8 parsecs"), "--max-size '8 parsecs' is not a limit"),
    ],
    ids=["method", "scope", "choice", "flag", "number", "word", "shape", "architecture", "limit"],
)
def test_wrong_flags_are_usage_errors(runner: Runner, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    sparsity = () if words[0] == "--sparsty" else HALF
    runner.refused(save_torch(tmp_path / "w.pt", weights()), *sparsity, *words, code=2, says=says)
