"""No code of a checkpoint runs without --trust-pickle: neither pickled nor named as what builds the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress_cli.checkpoint import Architecture, load, read_tensors, save
from compress_cli.errors import InputError
from compress_cli.inspection import inspect_checkpoint
from tests.compress_cli.checkpoint.checkpoint_files import LocalNet, refusal, save_torch, weights, write_net


class Command:
    """Runs a shell command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["beside", "inside", "whole"])
def test_a_pickled_command_is_named_and_does_not_run(tmp_path: Path, place: str, legacy: bool) -> None:
    command = Command(tmp_path / "it-ran")
    payload = {
        "beside": {"state_dict": weights(), "extra": command},
        "inside": {**weights(), "fc.extra": command},
        "whole": {"model": command, "w": torch.zeros(2)},
    }[place]
    file = save_torch(tmp_path / "w.pt", payload, legacy=legacy)
    with pytest.raises(InputError) as caught:
        read_tensors(file)
    assert "loading them would run code: posix.system" in caught.value.message
    assert "--trust-pickle" in caught.value.fix
    assert not (tmp_path / "it-ran").exists()


def test_the_command_is_real(tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", {"state_dict": weights(), "extra": Command(tmp_path / "it-ran")})
    read_tensors(file, trust_pickle=True)
    assert (tmp_path / "it-ran").exists()


def test_a_users_pickled_class_needs_trust(tmp_path: Path) -> None:
    file = save_torch(tmp_path / "w.pt", {"model": LocalNet(), "epoch": 4})
    with pytest.raises(InputError, match=r"would run code: tests\.\S+\.LocalNet, torch\.nn\.modules\.linear\.Linear"):
        load(file)
    loaded = load(file, trust_pickle=True)
    assert isinstance(loaded.module, LocalNet)
    assert not loaded.module.training
    assert loaded.metadata == {"epoch": 4}
    assert "code pickled in the file was run (--trust-pickle)" in loaded.notes


def test_a_class_that_is_gone_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_torch(tmp_path / "w.pt", LocalNet())
    monkeypatch.delattr("tests.compress_cli.checkpoint.checkpoint_files.LocalNet")
    with pytest.raises(InputError) as caught:
        read_tensors(file, trust_pickle=True)
    assert "needs code that cannot be found" in caught.value.message
    assert "PYTHONPATH" in caught.value.fix


def test_networks_of_library_layers_load_without_trust(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    loaded = load(save_torch(tmp_path / "w.pt", net), input_shape="3x3x3")
    assert loaded.module is not None
    inputs = torch.randn(2, 3, 3, 3)
    assert torch.equal(loaded.module(inputs), net.eval()(inputs))
    assert loaded.notes == ("the network is the one pickled in the file",)


@pytest.mark.parametrize("nested", [False, True])
def test_a_replaced_method_on_a_library_layer_is_refused(tmp_path: Path, nested: bool) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    vars(net[0])["forward"] = nn.Identity()
    file = save_torch(tmp_path / "w.pt", {"a": {"model": net}} if nested else net)
    with pytest.raises(InputError, match="layer '0' carries hooks or replaced methods"):
        read_tensors(file)


def store(file: Path, reference: str, **args: Any) -> Path:
    """A file of our own format that says which function builds its network."""
    return save(file, tensors=weights(), architecture=Architecture(reference, tuple(args.items())))


@pytest.mark.parametrize(
    "reference", ["os:system", "posix:system", "subprocess:getoutput", "torch.hub:load", "json:loads"]
)
def test_a_stored_architecture_cannot_name_any_function(tmp_path: Path, reference: str) -> None:
    target = tmp_path / "it-ran"
    argument = "cmd" if reference.startswith("subprocess") else "command"
    file = store(tmp_path / "model.pt", reference, **{argument: f"touch {target}"})
    with pytest.raises(InputError) as caught:
        load(file)
    assert "a checkpoint does not decide what is run" in caught.value.message
    assert f"--arch {reference}" in caught.value.fix
    found = inspect_checkpoint(file)
    assert found.totals["tensors"] == len(weights())
    assert any("does not decide" in note for note in found.notes)
    assert not target.exists()


def test_nor_a_function_of_an_installed_file(tmp_path: Path) -> None:
    import subprocess

    file = store(tmp_path / "model.pt", f"{subprocess.__file__}:getoutput", cmd=f"touch {tmp_path / 'it-ran'}")
    with pytest.raises(InputError, match="does not decide"):
        load(file)
    assert not (tmp_path / "it-ran").exists()


def test_nor_timm_arguments_that_load_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not decide"):
        load(store(tmp_path / "model.pt", "timm:resnet10t", checkpoint_path="/tmp/x.pth"))


def test_code_of_the_current_folder_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_net(tmp_path)
    file = store(tmp_path / "model.pt", "net.py:make")
    monkeypatch.chdir(tmp_path)
    loaded = load(file)
    assert type(loaded.module).__name__ == "Net"


def test_code_that_only_lies_beside_the_checkpoint_needs_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "download").mkdir()
    (tmp_path / "work").mkdir()
    write_net(tmp_path / "download")
    file = store(tmp_path / "download" / "model.pt", "net.py:make", classes=2)
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(InputError) as caught:
        load(file)
    assert "--arch net.py:make --arch-args classes=2" in refusal(caught.value)
    assert load(file, arch="net.py:make", arch_args=["classes=2"]).module is not None


def test_packages_inside_the_current_folder_are_not_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "env" / "site-packages"
    home.mkdir(parents=True)
    write_net(home)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not decide"):
        load(store(tmp_path / "model.pt", "env/site-packages/net.py:make"))


def test_what_the_user_confirmed_is_built(tmp_path: Path) -> None:
    source = write_net(tmp_path)
    architecture = Architecture(f"{source}:make", (("classes", 2),))
    file = save(tmp_path / "model.pt", tensors=weights(), architecture=architecture)
    assert load(file, confirmed=architecture).module is not None
    # the file has run in this process because the user named it: naming it again is no choice of the checkpoint
    assert load(file).module is not None
    for name in [name for name in sys.modules if name.startswith("compress_arch_net_")]:
        del sys.modules[name]
    with pytest.raises(InputError, match="does not decide"):
        load(file)


def test_torchvision_weights_are_never_downloaded(tmp_path: Path) -> None:
    from compress_cli.checkpoint import build

    net = build(Architecture("torchvision:squeezenet1_1", (("weights", "DEFAULT"), ("num_classes", 3))), meta=True)
    assert net.state_dict()["classifier.1.weight"].shape[0] == 3
