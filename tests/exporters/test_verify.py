"""The proof of an export: it must fail on a wrong file and must not take empty outputs for evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from exporters.onnx_export import export
from exporters.verify import difference, random_inputs, session, verify


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 4)
        self.dead = nn.Linear(3, 2)
        nn.init.zeros_(self.dead.weight)
        nn.init.zeros_(self.dead.bias)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"live": self.lin(x), "dead": self.dead(x)}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Path]:
    torch.manual_seed(0)
    model, path = Net(), tmp_path_factory.mktemp("onnx") / "net.onnx"
    export(model, (torch.randn(1, 3),), path, input_names=["x"])
    return model, path


def check(net: tuple[nn.Module, Path], **options: object) -> object:
    return verify(net[0], net[1], (torch.randn(1, 3),), input_names=["x"], **options)  # type: ignore[arg-type]


def test_agreement_per_output_input_and_batch(net: tuple[Net, Path]) -> None:
    proof = check(net)
    rows = [(a.output, a.input_index, a.batch) for a in proof.agreements]
    assert rows == [("live", 0, 1), ("dead", 0, 1), ("live", 1, 1), ("dead", 1, 1), ("live", 2, 3), ("dead", 2, 3)]
    assert proof.ok
    assert proof.max_rel <= 1e-6
    assert (proof.rtol, proof.atol) == (1e-4, 1e-6)


def test_zero_output_is_called_weak(net: tuple[Net, Path]) -> None:
    assert check(net).warnings == ("weak proof for output 'dead': it is zero on every input",)


def test_output_that_ignores_the_input_is_called_weak(net: tuple[Net, Path], tmp_path: Path) -> None:
    model = Net()
    nn.init.ones_(model.dead.bias)
    export(model, (torch.randn(1, 3),), tmp_path / "c.onnx", input_names=["x"])
    proof = check((model, tmp_path / "c.onnx"))
    assert proof.ok
    assert proof.warnings == ("weak proof for output 'dead': it does not depend on the input",)


def test_one_changed_weight_fails(net: tuple[Net, Path], tmp_path: Path) -> None:
    model = onnx.load(net[1])
    tensor = next(t for t in model.graph.initializer if t.name == "lin.weight")
    array = numpy_helper.to_array(tensor).copy()
    array[0, 0] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(array, "lin.weight"))
    onnx.save(model, tmp_path / "bad.onnx")
    proof = check((net[0], tmp_path / "bad.onnx"))
    assert not proof.ok
    assert {a.output for a in proof.agreements if not a.ok} == {"live"}


@pytest.mark.parametrize("content", [b"", b"not an onnx file", None])
def test_unreadable_file_is_no_proof(content: bytes | None, net: tuple[Net, Path], tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    proof = check((net[0], path))
    assert (proof.ok, proof.agreements) == (False, ())
    assert "cannot load" in proof.warnings[0]


def test_missing_output_is_no_proof(net: tuple[Net, Path], tmp_path: Path) -> None:
    model = onnx.load(net[1])
    del model.graph.output[1]
    onnx.save(model, tmp_path / "one.onnx")
    proof = check((net[0], tmp_path / "one.onnx"))
    assert not proof.ok
    assert "1 outputs, the model 2" in proof.warnings[0]


def test_small_outputs_are_compared_relative_to_themselves(net: tuple[Net, Path], tmp_path: Path) -> None:
    """Outputs of 1e-13 that are wrong by a tenth must not hide below an absolute tolerance."""
    model = nn.Linear(3, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e-13)
    export(model, (torch.randn(1, 3),), tmp_path / "tiny.onnx", input_names=["x"])
    assert check((model, tmp_path / "tiny.onnx")).ok
    with torch.no_grad():
        model.weight.mul_(1.1)
    assert not check((model, tmp_path / "tiny.onnx")).ok


def test_rtol_and_warning_threshold(net: tuple[Net, Path]) -> None:
    model = Net()
    model.load_state_dict(net[0].state_dict())
    with torch.no_grad():
        model.lin.weight.mul_(1 + 4e-5)
        model.lin.bias.mul_(1 + 4e-5)
    proof = check((model, net[1]))
    assert proof.ok
    assert any("'live' differs by 4.0e-05" in warning for warning in proof.warnings)
    assert not check((model, net[1]), rtol=1e-5).ok


def test_model_flags_come_back(net: tuple[Net, Path]) -> None:
    net[0].train()
    net[0].dead.eval()
    check(net)
    assert (net[0].training, net[0].lin.training, net[0].dead.training) == (True, True, False)


def test_batches_need_seeds(net: tuple[Net, Path]) -> None:
    with pytest.raises(ValueError, match="seeds"):
        check(net, batches=(1, 2, 3), seeds=(0,))


def test_where_pytorch_itself_fails_is_noted(net: tuple[Net, Path]) -> None:
    class Even(Net):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            if x.shape[0] == 3:
                raise RuntimeError("three is not supported")
            return super().forward(x)

    model = Even()
    model.load_state_dict(net[0].state_dict())
    proof = check((model, net[1]))
    assert proof.ok
    assert proof.notes == ("not compared at batch 3: PyTorch itself fails there (three is not supported)",)


@pytest.mark.parametrize(
    ("expected", "got", "result"),
    [
        ([2.0, -4.0], [2.0, -3.0], (1.0, 0.25)),
        ([0.0, 0.0], [0.0, 0.0], (0.0, 0.0)),
        ([0.0, 0.0], [0.0, 1e-9], (1e-9, np.inf)),
        ([np.nan, 1.0], [np.nan, 1.0], (0.0, 0.0)),
        ([np.inf, 1.0], [-np.inf, 1.0], (np.inf, np.inf)),
        ([1.0, 1.0], [np.nan, 1.0], (np.inf, np.inf)),
        ([1.0], [1.0, 1.0], (np.inf, np.inf)),
        ([], [], (0.0, 0.0)),
    ],
)
def test_difference(expected: list[float], got: list[float], result: tuple[float, float]) -> None:
    assert difference(np.array(expected), np.array(got)) == result


def test_difference_of_integers_is_the_share_of_changed_elements() -> None:
    assert difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9])) == (5.0, 0.25)


def test_random_inputs_keep_range_and_dtype() -> None:
    example = (torch.rand(1, 50), torch.tensor([[2, 5]]), torch.tensor([True]), torch.randn(4, 2))
    image, label, flag, fixed = random_inputs(example, seed=3, batch=7, free=[True, True, True, False])
    assert (image.shape, label.shape, flag.shape, fixed.shape) == ((7, 50), (7, 2), (7,), (4, 2))
    assert 0 <= image.min() <= image.max() <= 1
    assert 2 <= label.min() <= label.max() <= 5
    assert (label.dtype, flag.dtype) == (torch.int64, torch.bool)
    assert torch.equal(image, random_inputs(example, seed=3, batch=7)[0])


def test_session_is_single_threaded_on_the_cpu(net: tuple[Net, Path]) -> None:
    runner = session(net[1], threads=1, level="basic")
    assert runner.get_providers() == ["CPUExecutionProvider"]
    assert runner.get_session_options().intra_op_num_threads == 1


class Roots(nn.Module):
    """Square roots of numbers of both signs: NaN in PyTorch and in ONNX Runtime."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(x)


def test_nan_on_both_sides_is_reported(tmp_path: Path) -> None:
    example = (torch.randn(2, 5),)
    export(Roots(), example, tmp_path / "roots.onnx", input_names=["x"])
    found = verify(Roots(), tmp_path / "roots.onnx", example, input_names=["x"])
    assert found.ok
    assert any("not finite (NaN or infinity)" in warning for warning in found.warnings)
