"""`compress inspect` on checkpoints: what it counts is what is in the file, in text and in JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.app import run
from compress_cli.checkpoint import Architecture, InputSpec, save
from tests.compress_cli.checkpoint.checkpoint_files import save_torch, weights, write_net


def inspect_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The one document on stdout of a successful call."""
    code = run(["inspect", *words, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    document: dict[str, Any] = json.loads(printed.out)
    assert printed.out.count("\n") == 1
    assert document["schema_version"] == 1
    assert document["ok"] is True
    return document


def inspect_text(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code = run(["inspect", *words])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    return printed.out


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A training checkpoint whose tensors have 5 zeros among 108 + 4 + 8 + 2 + 8 parameters."""
    state = weights(torch.float16)
    state["conv.weight"].view(-1)[:5] = 0  # element 0 is zero anyway
    return save_torch(tmp_path / "w.pt", {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}})


def test_counts_are_those_of_the_file(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    found = inspect_json(capsys, str(file))
    assert (found["kind"], found["key_path"], found["prefix_stripped"]) == ("training", "state_dict", "module.")
    assert found["metadata"] == {"epoch": 3}
    assert found["bytes"] == file.stat().st_size
    assert found["totals"] == {
        "tensors": 9,
        "params": 108 + 4 + 4 + 4 + 8 + 2,
        "zeros": 5,
        "buffers": 4 + 4 + 1,
        "nonfinite": 0,
        "ranked_tensors": 2,
        "ranked_weights": 108 + 8,
        "ranked_zeros": 5,
    }
    assert found["dtypes"] == {"float16": 138, "int64": 1}
    row = next(row for row in found["tensors"] if row["name"] == "conv.weight")
    assert (row["shape"], row["zeros"], row["density"]) == ([4, 3, 3, 3], 5, 1 - 5 / 108)
    assert row["left_out"] is None


def test_what_is_left_out_has_its_reason(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    left_out = inspect_json(capsys, str(file))["left_out"]
    assert left_out["bias"] == ["conv.bias", "bn.bias", "fc.bias"]
    assert left_out["running statistic"] == ["bn.running_mean", "bn.running_var", "bn.num_batches_tracked"]
    assert left_out["fewer than two dimensions (normalisation, scale)"] == ["bn.weight"]


def test_an_architecture_adds_inputs_and_macs(capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path) -> None:
    factory = f"{write_net(tmp_path)}:make"
    found = inspect_json(capsys, str(file), "--arch", factory, "--input-shape", "3x8x8")
    assert found["architecture"] == {"reference": factory, "args": {}}
    assert found["origin"] == "flag"
    assert found["inputs"] == [{"name": "input", "shape": [3, 8, 8], "dtype": "float32", "listed": False}]
    # the convolution has 6x6 places, 3x3x3 inputs and 4 outputs; the linear layer 4 x 2
    assert found["complexity"]["macs"] == 6 * 6 * 27 * 4 + 4 * 2
    assert found["complexity"]["flops"] == 2 * found["complexity"]["macs"]
    assert found["totals"]["ranked_tensors"] == 2


def test_the_network_may_fail_on_the_shape_and_the_rest_is_shown(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    factory = f"{write_net(tmp_path)}:make"
    found = inspect_json(capsys, str(file), "--arch", factory, "--input-shape", "5x8x8")
    assert found["complexity"] is None
    assert any("MACs not counted" in note and "input 5x8x8" in note for note in found["notes"])


def test_groups_name_what_goes_together_and_what_is_frozen(
    capsys: pytest.CaptureFixture[str], file: Path, tmp_path: Path
) -> None:
    words = (str(file), "--arch", f"{write_net(tmp_path)}:make", "--input-shape", "3x8x8", "--groups")
    channels = inspect_json(capsys, *words)["channels"]
    (group,) = channels["groups"]
    assert (group["name"], group["units"]) == ("conv", 4)
    # one output channel of the convolution: 27 + 1 numbers, 2 of the norm, a column of the classifier; 6x6 places
    assert (group["params_per_unit"], group["macs_per_unit"]) == (27 + 1 + 2 + 2, 6 * 6 * 27 + 2)
    assert {"conv.weight", "bn.weight", "bn.running_mean", "fc.weight"} <= {name for name, *_ in group["members"]}
    assert any(item["tensor"] == "fc.bias" for item in channels["frozen"])
    text = inspect_text(capsys, *words)
    assert "1 of 1 channel groups (4 removable channels)" in text
    assert "frozen:" in text


def test_groups_need_a_network(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert run(["inspect", str(file), "--groups", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert "--groups needs the network" in document["error"]["message"]


def test_a_recognised_file_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torchvision

    net = torchvision.models.squeezenet1_1(num_classes=3)
    found = inspect_json(capsys, str(save_torch(tmp_path / "w.pt", net.state_dict())))
    assert found["architecture"] == {"reference": "torchvision:squeezenet1_1", "args": {"num_classes": 3}}
    assert found["origin"] == "recognised"
    assert found["totals"]["params"] == sum(parameter.numel() for parameter in net.parameters())
    assert found["complexity"]["macs"] > 200e6


def test_our_own_file_shows_plans_and_stored_architecture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = save(
        tmp_path / "model.pt",
        tensors=weights(),
        architecture=Architecture("gone.py:make", (("classes", 2),)),
        plans=[{"method": "magnitude", "sparsity": "0.9", "scope": "global", "score": "lamp"}],
        inputs=[InputSpec("image", (3, 8, 8))],
    )
    found = inspect_json(capsys, str(file))
    assert found["kind"] == "ours"
    assert found["architecture"]["reference"] == "gone.py:make"
    assert found["plans"][0]["method"] == "magnitude"
    assert any("the file gone.py does not exist" in note for note in found["notes"])
    text = inspect_text(capsys, str(file))
    assert "magnitude, sparsity 0.9, scope global, score lamp" in text
    assert "gone.py:make classes=2 (stored in the file)" in text


def test_an_architecture_given_by_flag_must_fit(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    code = run(["inspect", str(file), "--arch", "torchvision:resnet18", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 3
    assert document["ok"] is False
    assert document["error"]["code"] == 3
    assert "do not fit torchvision:resnet18" in document["error"]["message"]


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_values_that_are_not_finite_are_counted_and_warned_of(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    state = weights()
    state["fc.weight"][0, :2] = float(kind)
    file = save_torch(tmp_path / "w.pt", {"state_dict": state, "loss": float(kind)})
    found = inspect_json(capsys, str(file))
    assert found["totals"]["nonfinite"] == 2
    assert found["metadata"] == {"loss": None}
    assert "Warning: NaN or infinite values in 1 tensors: fc.weight" in inspect_text(capsys, str(file))


def test_shared_weights_count_once_and_name_each_other(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = torch.ones(5, 4)
    found = inspect_json(capsys, str(save_torch(tmp_path / "w.pt", {"a.weight": table, "b.weight": table})))
    assert found["totals"]["params"] == 20
    assert [row["same_as"] for row in found["tensors"]] == [None, "a.weight"]


def test_odd_tensors_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = {
        "empty.weight": torch.zeros(0, 3),
        "index": torch.tensor([0, 1, 0]),
        "scale": torch.tensor(2.0),
        "c": torch.zeros(2, 2, dtype=torch.complex64),
        "eight.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn),
        "real.weight": torch.ones(2, 2),
    }
    found = inspect_json(capsys, str(save_torch(tmp_path / "w.pt", state)))
    rows = {row["name"]: row for row in found["tensors"]}
    assert {name: row["zeros"] for name, row in rows.items()} == {
        "empty.weight": 0,
        "index": 2,
        "scale": 0,
        "c": 4,
        "eight.weight": 4,
        "real.weight": 0,
    }
    assert found["totals"]["ranked_tensors"] == 1
    assert rows["eight.weight"]["left_out"] == "element type float8_e4m3fn"
    assert rows["empty.weight"]["density"] == 0.0


def test_a_pickled_network_of_library_layers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", nn.Sequential(nn.Linear(4, 2)))
    found = inspect_json(capsys, str(file), "--input-shape", "4")
    assert (found["kind"], found["origin"], found["complexity"]["macs"]) == ("pickled_module", "pickle", 8)


@pytest.mark.parametrize("columns", ["80", "40"])
def test_text_keeps_names_whole_and_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    state = {"blocks[0].[bold]x[/bold].weight": torch.ones(3, 3), "n" * 70 + ".weight": torch.ones(2, 2)}
    text = inspect_text(capsys, str(save_torch(tmp_path / "w.pt", state)))
    body = text.splitlines()[1:]  # the first line is the path, which is never broken
    assert max(map(len, body)) <= int(columns)
    assert "[bold]x[/bold]" in text.replace("\n", "") or columns == "40"


def test_top_limits_the_table(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert "Largest 1 of 9 tensors (--top 0: all)" in inspect_text(capsys, str(file), "--top", "1")
    everything = inspect_text(capsys, str(file), "--top", "0")
    assert "All 9 tensors" in everything
    assert "bn.num_batches_tracked" in everything
    assert run(["inspect", str(file), "--top", "-1"]) == 2


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "is empty"), (b"PK\x03\x04" + bytes(50), "cut short"), (b"x" * 30, "is a text file")]
)
def test_bad_files_are_one_document_with_exit_code_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    assert run(["inspect", str(tmp_path / "w.pt"), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert says in document["error"]["message"]
    assert document["error"]["fix"]


def test_a_real_checkpoint(capsys: pytest.CaptureFixture[str], shared_data: Path) -> None:
    factory = Path(__file__).parents[2] / "examples" / "cifar_resnet.py"
    file = shared_data / "checkpoints" / "cifar10-resnet20.th"
    found = inspect_json(capsys, str(file), "--arch", f"{factory}:resnet20", "--input-shape", "3x32x32")
    assert found["totals"]["params"] == 269_722
    assert found["totals"]["ranked_weights"] == 268_336
    assert found["complexity"]["macs"] == 40_551_040  # 40.55 M, published for this network
    assert found["kind"] == "training"
