"""`model.pt`: written without pickled code, read back to the same tensors, architecture, plans and inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import compress_cli
from compress_cli.checkpoint import Architecture, InputSpec, Kind, as_stored, load, read_tensors, save
from compress_cli.checkpoint.sniff import sniff
from compress_cli.errors import InputError
from tests.compress_cli.checkpoint.checkpoint_files import save_torch, weights, write_net

PLAN = {"method": "magnitude", "sparsity": "0.5", "cuts": []}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A half-precision checkpoint of `net.py:make`, with its safetensors twin."""
    architecture = Architecture(f"{write_net(tmp_path)}:make", (("classes", 2),))
    return save(
        tmp_path / "model.pt",
        tensors=weights(torch.float16),
        architecture=architecture,
        plans=[PLAN],
        inputs=[InputSpec("image", (3, 5, 5))],
        metadata={"epoch": 3},
        report={"method": "magnitude"},
        safetensors=tmp_path / "model.safetensors",
    )


def confirmed(file: Path) -> Architecture:
    return Architecture(f"{file.parent / 'net.py'}:make", (("classes", 2),))


def test_plain_torch_reads_it_without_code(written: Path) -> None:
    document = torch.load(written, weights_only=True)
    assert list(document)[:2] == ["format_version", "compress_version"]
    assert document["plans"] == [PLAN]
    assert document["report"] == {"method": "magnitude"}
    assert list(document["state_dict"]) == list(weights())
    assert torch.equal(document["state_dict"]["fc.weight"], weights(torch.float16)["fc.weight"])


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_both_forms_come_back_whole(written: Path, name: str) -> None:
    file = written.with_name(name)
    assert sniff(file) is (Kind.OURS if name == "model.pt" else Kind.SAFETENSORS)
    loaded = load(file, confirmed=confirmed(written))
    assert loaded.architecture == confirmed(written)
    assert loaded.plans == (PLAN,)
    assert loaded.inputs == (InputSpec("image", (3, 5, 5)),)
    assert loaded.dtype == "float16"
    assert loaded.module is not None
    assert torch.equal(loaded.module.fc.weight, weights(torch.float16)["fc.weight"].float())


def test_compress_cli_load_gives_the_network_in_eval_mode(written: Path) -> None:
    net = compress_cli.load(str(written), confirmed=confirmed(written))
    assert not net.training
    assert net(torch.zeros(2, 3, 5, 5)).shape == (2, 2)


def test_the_users_own_load_state_dict_takes_the_weights(written: Path) -> None:
    from compress_cli.checkpoint import build

    net = build(confirmed(written)).half()
    net.load_state_dict(torch.load(written, weights_only=True)["state_dict"], strict=True)


def test_compress_cli_load_refuses_weights_without_an_architecture(tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", weights())
    with pytest.raises(InputError) as caught:
        compress_cli.load(str(file))
    assert "nothing says how to build their network" in caught.value.message
    assert "--arch" in caught.value.fix


def test_dtypes_of_the_original_file_are_restored() -> None:
    tensors = weights(torch.float32)
    stored = as_stored(tensors, {"fc.weight": torch.float16, "bn.num_batches_tracked": torch.int64})
    assert stored["fc.weight"].dtype is torch.float16
    assert stored["fc.bias"].dtype is torch.float32
    assert stored["bn.num_batches_tracked"].dtype is torch.int64


def test_a_view_does_not_carry_its_whole_storage_into_the_file(tmp_path: Path) -> None:
    big = torch.zeros(1_000_000)
    file = save(tmp_path / "model.pt", tensors={"w.weight": big[:10].reshape(2, 5)})
    assert file.stat().st_size < 10_000


def test_shared_weights_stay_shared_in_the_file(tmp_path: Path) -> None:
    table = torch.arange(60_000.0).reshape(300, 200)
    file = save(tmp_path / "m.pt", tensors={"a": table, "b": table}, safetensors=tmp_path / "m.safetensors")
    assert file.stat().st_size < 300_000
    tensors = read_tensors(file).tensors
    assert tensors["a"].data_ptr() == tensors["b"].data_ptr()
    twin = read_tensors(tmp_path / "m.safetensors").tensors
    assert torch.equal(twin["a"], table)
    assert torch.equal(twin["b"], table)


def test_non_contiguous_and_parameter_tensors_are_written_by_value(tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    file = save(tmp_path / "m.pt", tensors={"w": tensor.t()}, safetensors=tmp_path / "m.safetensors")
    for path in (file, tmp_path / "m.safetensors"):
        assert torch.equal(read_tensors(path).tensors["w"], tensor.detach().t())


def test_what_json_cannot_hold_is_a_programmers_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save(tmp_path / "m.pt", tensors={"w": torch.zeros(2)}, metadata={"x": object()})
    with pytest.raises(ValueError, match="extra would replace"):
        save(tmp_path / "m.pt", tensors={"w": torch.zeros(2)}, extra={"plans": []})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format_version": 99}, "has format version 99; this compress reads up to 1"),
        ({"plans": [{"method": "sorcery"}]}, "a plan of method 'sorcery', which is unknown here"),
        ({"architecture": {"refers": "?"}}, "its description of the network is damaged"),
        ({"inputs": [{"name": "x"}]}, "its description of the network is damaged"),
        ({"plans": ["x"]}, "its description of the network is damaged"),
        ({"metadata": 3}, "its description of the network is damaged"),
        ({"state_dict": {"w": 3, "v": torch.zeros(2)}}, "its state_dict is damaged"),
        ({"architecture": {"reference": "torchvision:nope", "args": {}}}, "torchvision has no model 'nope'"),
    ],
    ids=["version", "plan", "architecture", "inputs", "plans", "metadata", "state_dict", "builder"],
)
def test_a_damaged_or_newer_file_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    file = save(tmp_path / "m.pt", tensors=weights(), architecture=Architecture("torchvision:resnet18"))
    document = torch.load(file, weights_only=True)
    torch.save({**document, **change}, file)
    with pytest.raises(InputError) as caught:
        load(file)
    assert says in caught.value.message
    assert caught.value.fix


def test_names_of_one_tensor_share_it_in_its_stored_type() -> None:
    table = torch.ones(8, 4)
    stored = as_stored(
        {"embed": table, "head": table, "part": table[:2]}, dict.fromkeys(("embed", "head", "part"), torch.float16)
    )
    assert stored["embed"].data_ptr() == stored["head"].data_ptr() != stored["part"].data_ptr()
