"""Tensors come out of every kind of file as they are in it, and what lay around them is named."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress_cli.checkpoint import read_tensors
from compress_cli.checkpoint.sniff import Kind
from compress_cli.errors import CompressError, InputError, UnsupportedModelError
from tests.compress_cli.checkpoint.checkpoint_files import LocalNet, save_torch, weights


def prefixed(prefix: str, **options: Any) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights(**options).items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_bare_state_dicts_keep_values_and_dtypes(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    raw = read_tensors(save_torch(tmp_path / "w.pt", weights(dtype), legacy=legacy))
    assert raw.kind is (Kind.LEGACY if legacy else Kind.STATE_DICT)
    assert_same(raw.tensors, weights(dtype))


def test_safetensors_keep_values_and_metadata(tmp_path: Path) -> None:
    save_file(weights(torch.bfloat16), tmp_path / "w.safetensors", metadata={"format": "pt", "epoch": "3"})
    raw = read_tensors(tmp_path / "w.safetensors")
    assert raw.kind is Kind.SAFETENSORS
    assert raw.metadata == {"epoch": "3"}
    assert {name: tensor.dtype for name, tensor in raw.tensors.items()} == {
        name: tensor.dtype for name, tensor in weights(torch.bfloat16).items()
    }
    assert torch.equal(raw.tensors["fc.weight"], weights(torch.bfloat16)["fc.weight"])


@pytest.mark.parametrize(
    ("payload", "key_path", "prefix"),
    [
        ({"state_dict": prefixed("module."), "epoch": 3}, "state_dict", "module."),
        ({"model": prefixed("_orig_mod.module.")}, "model", "_orig_mod.module."),
        ({"model": {"state_dict": prefixed("model.")}}, "model.state_dict", "model."),
        ({"params": weights()}, "params", ""),
        ({"whatever": weights(), "lr": 0.1}, "whatever", ""),
        (prefixed("module."), "", "module."),
    ],
    ids=["dataparallel", "compiled", "twice nested", "params", "the only dict of tensors", "bare"],
)
def test_nesting_and_prefixes_are_taken_off(tmp_path: Path, payload: Any, key_path: str, prefix: str) -> None:
    raw = read_tensors(save_torch(tmp_path / "w.pt", payload))
    assert (raw.key_path, raw.prefix_stripped) == (key_path, prefix)
    assert_same(raw.tensors, weights())


def test_a_prefix_that_not_all_names_share_stays(tmp_path: Path) -> None:
    state = {**prefixed("module."), "scale.weight": torch.ones(2, 2)}
    raw = read_tensors(save_torch(tmp_path / "w.pt", state))
    assert raw.prefix_stripped == ""
    assert "module.fc.weight" in raw.tensors


def test_the_averaged_weights_win_and_the_others_are_mentioned(tmp_path: Path) -> None:
    ema = {name: tensor + 1 for name, tensor in weights().items()}
    raw = read_tensors(save_torch(tmp_path / "w.pt", {"model": weights(), "model_ema": ema, "epoch": 9}))
    assert raw.key_path == "model_ema"
    assert torch.equal(raw.tensors["fc.bias"], weights()["fc.bias"] + 1)
    assert raw.notes == ("used the weights under 'model_ema'; 'model' also hold weights",)
    assert raw.metadata == {"epoch": 9}


def test_swa_counter_goes_with_its_wrapper(tmp_path: Path) -> None:
    raw = read_tensors(save_torch(tmp_path / "w.pt", {"n_averaged": torch.tensor(4), **prefixed("module.")}))
    assert raw.ignored_entries == ("n_averaged",)
    assert_same(raw.tensors, weights())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_training_scripts_value_objects_are_skipped_and_named(tmp_path: Path, legacy: bool) -> None:
    payload = {
        "state_dict": prefixed("module."),
        "optimizer": torch.optim.SGD(LocalNet().parameters(), 0.1).state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(91.5),
        "out": Path("/tmp/run"),
        "acc": 91.5,
    }
    raw = read_tensors(save_torch(tmp_path / "w.pt", payload, legacy=legacy))
    assert_same(raw.tensors, weights())
    assert raw.ignored_entries == ("optimizer", "args", "best", "out")
    assert raw.metadata == {"acc": 91.5}
    assert raw.notes[0].startswith("not read from the file: objects of argparse.Namespace, numpy.")


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(3, 2)
    raw = read_tensors(save_torch(tmp_path / "w.pt", {"in.weight": table, "out.weight": table}))
    assert raw.tensors["in.weight"].data_ptr() == raw.tensors["out.weight"].data_ptr()


def test_entries_that_are_no_tensors_are_left_beside(tmp_path: Path) -> None:
    raw = read_tensors(save_torch(tmp_path / "w.pt", {**weights(), "step": 3, "names": ["a"]}))
    assert raw.ignored_entries == ("step", "names")
    assert_same(raw.tensors, weights())


def test_integer_zero_size_and_scalar_tensors_are_read(tmp_path: Path) -> None:
    state = {
        "index": torch.arange(3),
        "none.weight": torch.zeros(0, 4),
        "scale": torch.tensor(2.0),
        "w": torch.ones(2, 2),
    }
    assert_same(read_tensors(save_torch(tmp_path / "w.pt", state)).tensors, state)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ([torch.zeros(2)], "holds a list, not a dict of named tensors"),
        (torch.zeros(2), "holds a Tensor, not a dict of named tensors"),
        ({"epoch": 3}, "without any tensors"),
        ({0: torch.zeros(2, 2)}, "names a tensor 0 (int); names must be text"),
        ({"gen": weights(), "disc": weights()}, "several sets of weights: 'gen' (9 entries), 'disc' (9 entries)"),
        ({"a": {"b": {"c": {"d": {"e": {"f": torch.zeros(2)}}}}}}, "holds no tensors"),
    ],
    ids=["list", "tensor", "no tensors", "number as a name", "two networks", "too deep"],
)
def test_payloads_without_one_set_of_weights_are_refused(tmp_path: Path, payload: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_tensors(save_torch(tmp_path / "w.pt", payload))
    assert says in caught.value.message
    assert "torch.save(" in caught.value.fix


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_and_sparse_tensors_are_refused_by_name(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    with pytest.raises(UnsupportedModelError, match=r"tensor fc\.w is quantized \(torch\.qint8\)"):
        read_tensors(save_torch(tmp_path / "q.pt", {"fc.w": quantized}))
    with pytest.raises(UnsupportedModelError, match=r"tensor fc\.w is stored as torch\.sparse_coo"):
        read_tensors(save_torch(tmp_path / "s.pt", {"fc.w": torch.eye(3).to_sparse()}))


def test_torchscript_and_exported_programs_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(LocalNet()), tmp_path / "script.pt")
    torch.export.save(torch.export.export(LocalNet().eval(), (torch.zeros(1, 2),)), tmp_path / "program.pt2")
    for name, way_out in (
        ("script.pt", "torch.jit.load(FILE).state_dict()"),
        ("program.pt2", "torch.export.load(FILE)"),
    ):
        with pytest.raises(UnsupportedModelError) as caught:
            read_tensors(tmp_path / name)
        assert way_out in caught.value.fix
        assert caught.value.exit_code == 3


def test_the_way_out_of_torchscript_works(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(LocalNet()), tmp_path / "script.pt")
    torch.save(torch.jit.load(tmp_path / "script.pt").state_dict(), tmp_path / "weights.pt")
    assert sorted(read_tensors(tmp_path / "weights.pt").tensors) == ["fc.bias", "fc.weight"]


def test_data_parallel_wrappers_of_a_pickled_network_are_taken_off(tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", nn.DataParallel(nn.Sequential(nn.Linear(2, 3))))
    raw = read_tensors(file, trust_pickle=True)
    assert sorted(raw.tensors) == ["0.bias", "0.weight"]
    assert isinstance(raw.module, nn.Sequential)


@pytest.mark.parametrize("source", ["zip", "legacy", "training", "module", "safetensors"])
def test_damaged_bytes_are_refused_and_never_crash(tmp_path: Path, source: str) -> None:
    whole = tmp_path / "whole"
    if source == "safetensors":
        save_file(weights(), whole)
    elif source == "module":
        save_torch(whole, nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    else:
        payload = {"state_dict": prefixed("module."), "epoch": 2} if source == "training" else weights()
        save_torch(whole, payload, legacy=source == "legacy")
    content, rng, file = whole.read_bytes(), random.Random(source), tmp_path / "damaged"
    refused = 0
    for _ in range(60):
        damaged = bytearray(content)
        place = rng.randrange(len(damaged))
        if rng.random() < 0.7:
            damaged[place] ^= rng.randrange(1, 256)
        else:
            del damaged[place : place + rng.randrange(1, 9)]
        file.write_bytes(damaged)
        error = refused_with(file)
        refused += error is not None
        assert error is None or file.name in error.message
    assert refused > 10


def refused_with(file: Path) -> CompressError | None:
    try:
        read_tensors(file)
    except CompressError as error:
        return error
    return None
