"""Weights go into a network strictly, in float32; where they do not fit, a short diff says what to change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress_cli.checkpoint import load
from compress_cli.errors import InputError, UsageError
from tests.compress_cli.checkpoint.checkpoint_files import save_torch, weights, write_net


@pytest.fixture
def net(tmp_path: Path) -> str:
    return str(write_net(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_float_type_runs_in_float32_and_remembers_its_own(tmp_path: Path, net: str, dtype: torch.dtype) -> None:
    loaded = load(save_torch(tmp_path / "w.pt", weights(dtype)), arch=f"{net}:make", input_shape="3x5x5")
    assert loaded.module is not None
    assert not loaded.module.training
    assert torch.equal(loaded.module.fc.weight, weights(dtype)["fc.weight"].float())
    assert loaded.dtype == str(dtype).removeprefix("torch.")
    assert loaded.dtypes["fc.weight"] is dtype
    assert loaded.dtypes["bn.num_batches_tracked"] is torch.int64
    assert loaded.module(*loaded.example_inputs).shape == (1, 2)


def test_edits_of_the_tensors_are_edits_of_the_module(tmp_path: Path, net: str) -> None:
    loaded = load(save_torch(tmp_path / "w.pt", weights()), arch=f"{net}:make")
    loaded.tensors["fc.weight"].zero_()
    assert loaded.module is not None
    assert not loaded.module.fc.weight.any()


def test_counters_may_be_absent_as_in_old_checkpoints(tmp_path: Path, net: str) -> None:
    state = {name: tensor for name, tensor in weights().items() if not name.endswith("tracked")}
    loaded = load(save_torch(tmp_path / "w.pt", state), arch=f"{net}:make")
    assert list(loaded.tensors) == list(state)
    assert loaded.notes == ("1 num_batches_tracked counters are not in the file",)


def test_a_stripped_prefix_that_the_network_has_itself_is_put_back(tmp_path: Path, net: str) -> None:
    for prefix in ("model.", "module.model."):
        state = {prefix + name: tensor for name, tensor in weights().items()}
        loaded = load(save_torch(tmp_path / "w.pt", state), arch=f"{net}:Wrapper")
        assert loaded.module is not None
        assert torch.equal(loaded.module.model.fc.bias, weights()["fc.bias"])
        inner = load(tmp_path / "w.pt", arch=f"{net}:make")
        assert inner.module is not None


def test_another_number_of_classes_names_the_argument(tmp_path: Path, net: str) -> None:
    with pytest.raises(InputError) as caught:
        load(save_torch(tmp_path / "w.pt", weights(classes=7)), arch=f"{net}:make")
    assert caught.value.exit_code == 3
    assert "wrong shapes 2: fc.weight 7x4 in the file, 2x4 in the network; fc.bias 7" in caught.value.message
    assert "--arch-args num_classes=7" in caught.value.fix
    assert load(tmp_path / "w.pt", arch=f"{net}:make", arch_args=["classes=7"]).module is not None


def test_missing_and_unexpected_names_are_a_short_diff(tmp_path: Path, net: str) -> None:
    state = weights()
    del state["fc.bias"]
    state |= {f"extra{i}.weight": torch.zeros(1) for i in range(8)}
    with pytest.raises(InputError) as caught:
        load(save_torch(tmp_path / "w.pt", state), arch=f"{net}:make")
    lines = caught.value.message.splitlines()
    assert lines[0].endswith(f"w.pt (16 tensors) do not fit {net}:make")
    assert lines[1].strip() == "missing from the file 1: fc.bias"
    assert lines[2].strip().startswith("not in the network 8: extra0.weight, extra1.weight")
    assert lines[2].endswith("... and 3 more")


def test_a_prefix_of_the_file_is_named(tmp_path: Path, net: str) -> None:
    state = {f"backbone.{name}": tensor for name, tensor in weights().items()}
    with pytest.raises(InputError) as caught:
        load(save_torch(tmp_path / "w.pt", state), arch=f"{net}:make")
    assert "the file's names begin with 'backbone.'" in caught.value.fix


def test_a_prefix_of_the_network_is_named(tmp_path: Path, net: str) -> None:
    with pytest.raises(InputError) as caught:
        load(save_torch(tmp_path / "w.pt", weights()), arch=f"{net}:Wrapper")
    assert "the network's names begin with 'model.'" in caught.value.fix


def test_nothing_is_loaded_partially(tmp_path: Path, net: str) -> None:
    state = {**weights(), "conv.weight": torch.zeros(4, 3, 1, 1)}
    with pytest.raises(InputError, match=r"wrong shapes 1: conv\.weight 4x3x1x1 in the file, 4x3x3x3 in the network"):
        load(save_torch(tmp_path / "w.pt", state), arch=f"{net}:make")


def test_arguments_need_an_architecture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--arch-args without --arch"):
        load(save_torch(tmp_path / "w.pt", weights()), arch_args=["classes=3"])


def test_without_an_architecture_there_are_tensors_and_the_reason(tmp_path: Path) -> None:
    loaded = load(save_torch(tmp_path / "w.pt", weights()))
    assert loaded.module is None
    assert list(loaded.tensors) == list(weights())
    assert "--arch path/to/net.py:factory" in loaded.missing_reason


def test_without_an_input_shape_the_reason_names_the_flag(tmp_path: Path, net: str) -> None:
    loaded = load(save_torch(tmp_path / "w.pt", weights()), arch=f"{net}:make")
    assert loaded.example_inputs is None
    assert "--input-shape CxHxW" in loaded.missing_reason


def test_names_of_older_torchvision_releases_are_understood(tmp_path: Path) -> None:
    import torchvision

    net = torchvision.models.densenet121(num_classes=3).eval()
    old = {
        name.replace(".norm1.", ".norm.1.")
        .replace(".conv1.", ".conv.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv2.", ".conv.2."): tensor
        for name, tensor in net.state_dict().items()
    }
    loaded = load(save_torch(tmp_path / "w.pt", old))
    assert str(loaded.architecture) == "torchvision:densenet121 num_classes=3"
    assert list(loaded.tensors) == list(old)
    assert loaded.module is not None
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(inputs), net(inputs))


@pytest.mark.parametrize(("name", "params"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_real_cifar_checkpoints_load_strictly(shared_data: Path, name: int, params: int) -> None:
    factory = Path(__file__).parents[3] / "examples" / "cifar_resnet.py"
    file = shared_data / "checkpoints" / f"cifar10-resnet{name}.th"
    loaded = load(file, arch=f"{factory}:resnet{name}", input_shape="3x32x32")
    assert loaded.module is not None
    assert sum(parameter.numel() for parameter in loaded.module.parameters()) == params
    assert loaded.metadata["best_prec1"] > 91
    with torch.no_grad():
        assert loaded.module(*loaded.example_inputs).shape == (1, 10)


GUARDED = """
from torch import nn


class Guarded(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_load_state_dict_pre_hook(self.check)

    def check(self, *_):
        raise RuntimeError("weights of layout 1: convert them first")

    def forward(self, x):
        return self.fc(x)
"""


def test_weights_that_the_network_refuses_are_never_replaced_by_random_ones(tmp_path: Path) -> None:
    (tmp_path / "guarded.py").write_text(GUARDED)
    file = save_torch(tmp_path / "w.pt", {"fc.weight": torch.ones(4, 4), "fc.bias": torch.ones(4)})
    with pytest.raises(InputError, match=r"names and shapes fit: .*layout 1: convert them first"):
        load(file, arch=f"{tmp_path / 'guarded.py'}:Guarded", input_shape="4")


def test_float64_weights_are_said_to_be_narrowed(tmp_path: Path, net: str) -> None:
    loaded = load(save_torch(tmp_path / "w.pt", weights(torch.float64)), arch=f"{net}:make")
    assert [note for note in loaded.notes if "computed in float32" in note]
