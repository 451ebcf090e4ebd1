"""ONNX export on tiny nets: names, dynamic batch, folding, fallbacks, silence, and a model left as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from exporters.onnx_export import ExportFailed, export, flatten_outputs
from exporters.verify import verify


class ConvNet(nn.Module):
    """Conv+BN, then pooled features; what is returned is up to `form`."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        self.drop = nn.Dropout(0.5)
        self.form = form
        with torch.no_grad():
            self.bn.running_mean.uniform_(-1, 1)
            self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> object:
        features = self.bn(self.conv(x)).relu().mean((2, 3))
        logits = self.head(self.drop(features))
        if self.form == "tuple":
            return logits, features
        if self.form == "dict":
            return {"out": logits, "aux": {"half": features * 0.5, "more": [features + 1, None]}}
        return Two(logits, features) if self.form == "dataclass" else logits


@dataclass
class Two:
    scores: Tensor
    embedding: Tensor


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.lin = nn.Linear(3, 4)

    def forward(self, image: Tensor, label: Tensor) -> Tensor:
        return self.lin(image) * self.embed(label)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.arange(1.0, 7.0).reshape(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class NoOnnxOperator(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("form", "names"),
    [
        ("tensor", ("output",)),
        ("tuple", ("output_0", "output_1")),
        ("dict", ("out", "aux.half", "aux.more_0")),
        ("dataclass", ("scores", "embedding")),
    ],
)
def test_names_dynamic_batch_and_folded_batchnorm(form: str, names: tuple[str, ...], tmp_path: Path) -> None:
    model, path = ConvNet(form), tmp_path / "net.onnx"
    example = (torch.randn(1, 3, 8, 8),)
    result = export(model, example, path, input_names=["image"])
    graph = onnx.load(path).graph
    assert result.exporter == "dynamo"
    assert result.output_names == names == tuple(value.name for value in graph.output)
    assert result.input_names == ("image",)
    assert result.dynamic_batch
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert {"conv.weight", "head.weight"} <= {tensor.name for tensor in graph.initializer}
    assert (result.nodes, result.file_bytes) == (len(graph.node), path.stat().st_size)
    assert list(tmp_path.iterdir()) == [path]
    assert verify(model, path, example, input_names=["image"]).ok


def test_model_untouched_and_nothing_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = ConvNet().train()
    model.bn.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model, (torch.randn(2, 3, 8, 8),), tmp_path / "a.onnx", input_names=["x"])
    with pytest.raises(ExportFailed):
        export(NoOnnxOperator(), (torch.randn(2, 3),), tmp_path / "b.onnx", input_names=["x"])
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert [model.training, model.conv.training, model.bn.training] == [True, True, False]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_no_path_of_this_machine_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    export(ConvNet(), (torch.randn(1, 3, 8, 8),), path, input_names=["x"])
    assert Path(__file__).parent.as_posix().encode() not in path.read_bytes()


def test_same_model_same_bytes(tmp_path: Path) -> None:
    model = ConvNet()
    for name in ("a", "b"):
        export(model, (torch.randn(1, 3, 8, 8),), tmp_path / name, input_names=["x"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_two_inputs_share_one_dynamic_batch(tmp_path: Path) -> None:
    model, path = TwoInputs(), tmp_path / "two.onnx"
    example = (torch.randn(2, 3), torch.tensor([6, 0]))
    result = export(model, example, path, input_names=["image", "label"], output_names=["product"])
    assert (result.input_names, result.output_names) == (("image", "label"), ("product",))
    proof = verify(model, path, example, input_names=["image", "label"])
    assert proof.ok
    assert {agreement.batch for agreement in proof.agreements} == {1, 3}


@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_batch_is_noted(batch: int, tmp_path: Path) -> None:
    model, path = FixedBatch(), tmp_path / "fixed.onnx"
    if batch == 1:
        model.scale = nn.Parameter(torch.ones(1, 3))
        model.forward = lambda x: (x * model.scale).reshape(1, 3)  # type: ignore[method-assign]
    example = (torch.randn(batch, 3),)
    result = export(model, example, path, input_names=["x"])
    assert not result.dynamic_batch
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == batch
    assert any("batch" in note for note in result.notes)
    proof = verify(model, path, example, input_names=["x"])
    assert proof.ok
    assert {agreement.batch for agreement in proof.agreements} == {batch}


def test_static_batch_on_request(tmp_path: Path) -> None:
    result = export(ConvNet(), (torch.randn(2, 3, 8, 8),), tmp_path / "s.onnx", input_names=["x"], dynamic_batch=False)
    assert (result.dynamic_batch, result.notes) == (False, ())


def test_torchscript_is_the_fallback_and_is_named(tmp_path: Path) -> None:
    result = export(DataDependent(), (torch.ones(2, 3),), tmp_path / "d.onnx", input_names=["x"])
    assert result.exporter == "torchscript"
    assert any("dynamo exporter failed" in note and "data-dependent" in note for note in result.notes)
    assert any("fixed 1 values or decisions" in note for note in result.notes)
    # The branch that tracing dropped must not pass the proof.
    proof = verify(
        DataDependent(), tmp_path / "d.onnx", (torch.ones(2, 3),), input_names=["x"],
        real_inputs=[(-torch.ones(2, 3),)],
    )  # fmt: skip
    assert not proof.ok


def test_unexportable_model_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed) as caught:
        export(NoOnnxOperator(), (torch.randn(2, 3),), tmp_path / "no.onnx", input_names=["x"])
    assert "bessel_j0" in caught.value.reason
    assert "\n" not in caught.value.reason
    assert list(tmp_path.iterdir()) == []


def test_output_named_like_an_input_is_renamed(tmp_path: Path) -> None:
    class Echo(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x * 2, "y": x + 1}

    result = export(Echo(), (torch.randn(2, 3),), tmp_path / "e.onnx", input_names=["x"])
    assert result.output_names == ("x_out", "y")
    assert verify(Echo(), tmp_path / "e.onnx", (torch.randn(2, 3),), input_names=["x"]).ok


@pytest.mark.parametrize(
    ("input_names", "output_names"), [(["a", "b"], None), (["x"], ["o", "p"]), (["x"], ["x"]), ([], None)]
)
def test_wrong_number_of_names_is_refused(
    input_names: list[str], output_names: list[str] | None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="need"):
        export(
            ConvNet(), (torch.randn(1, 3, 8, 8),), tmp_path / "n.onnx",
            input_names=input_names, output_names=output_names,
        )  # fmt: skip


def test_flatten_outputs_orders_and_names() -> None:
    a, b, c = (torch.tensor(float(i)) for i in range(3))
    assert list(flatten_outputs(a)) == ["output"]
    assert flatten_outputs([a, (b, c)]) == {"output_0": a, "output_1_0": b, "output_1_1": c}
    assert list(flatten_outputs({"z": a, "a": {"k": b, 3: c}})) == ["z", "a.k", "a.3"]
    assert list(flatten_outputs((torch.max(torch.eye(2), 0), None, 3))) == ["output_0_0", "output_0_1"]


@pytest.mark.parametrize("outputs", [None, 3, [], {"a": "text"}])
def test_no_tensor_is_a_reason(outputs: object) -> None:
    with pytest.raises(ExportFailed, match="no tensor"):
        flatten_outputs(outputs)


def test_clashing_names_are_a_reason() -> None:
    with pytest.raises(ExportFailed, match="same name"):
        flatten_outputs({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}})
