"""Pairs in place of layers: shared ones, checkpoints, ONNX, and proofs that fail when they should."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from decomposers import alds
from decomposers.errors import BadPlan, PlanMismatch, ProofFailed
from decomposers.surgery import restored
from tests.decomposers.nets import Attention, Mixed, Shared, images, seeded

IMAGE = images(1, 3, 16, 16)


def decomposed(kind: type[nn.Module], budget: float = 0.6) -> tuple[nn.Module, nn.Module, alds.AldsPlan]:
    """Original, decomposed model and plan."""
    original, model = seeded(kind()), seeded(kind())
    plan = alds.plan(model, IMAGE, budget=budget * sum(p.numel() for p in model.parameters()))
    alds.apply_(model, plan)
    return original, model, plan


def test_shared_modules_and_weights_stay_shared() -> None:
    original, model, plan = decomposed(Shared, 0.5)
    assert {"middle", "left"} <= {layer.name for layer in plan.layers}
    assert model.middle is model.again
    assert model.left is model.stages[0]
    assert model.right is model.stages[1]
    assert model.left is not model.right
    for left, right in zip(model.left, model.right, strict=True):
        assert left.weight is right.weight
    assert not torch.equal(model.left[1].bias, model.right[1].bias)
    assert torch.equal(model.left[1].bias, original.left.bias)
    assert torch.equal(model.right[1].bias, original.right.bias)


@pytest.mark.parametrize("kind", [Mixed, Shared, Attention])
def test_checkpoint_round_trip_is_exact(kind: type[nn.Module], tmp_path: Path) -> None:
    original, model, plan = decomposed(kind)
    torch.save({"plan": plan.to_dict(), "state_dict": model.state_dict()}, tmp_path / "model.pt")
    stored = torch.load(tmp_path / "model.pt", weights_only=True)
    rebuilt = kind().eval()
    alds.restructure_(rebuilt, stored["plan"])
    rebuilt.load_state_dict(stored["state_dict"])
    sample = images(2, 3, 16, 16)
    assert torch.equal(rebuilt(sample), model(sample))
    untouched = {f"{name}." for layer in plan.layers for name in layer.names}
    for name, value in original.state_dict().items():
        if not any(name.startswith(prefix) for prefix in untouched):
            assert torch.equal(model.state_dict()[name], value)


def test_restructuring_works_on_meta_and_checks_the_plan() -> None:
    _, _, plan = decomposed(Mixed)
    with torch.device("meta"):
        empty = Mixed()
    alds.restructure_(empty, plan)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    with pytest.raises(PlanMismatch):
        alds.restructure_(empty, plan)
    with pytest.raises(BadPlan):
        alds.restructure_(Mixed(), {"method": "magnitude"})


def test_onnx_runs_with_any_batch_and_agrees(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    _, model, _ = decomposed(Mixed, 0.5)
    file = tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.onnx.export(model, (images(2, 3, 16, 16),), file, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        sample = images(count, 3, 16, 16, seed=count)
        (found,) = session.run(None, {session.get_inputs()[0].name: sample.numpy()})
        assert torch.allclose(torch.from_numpy(found), model(sample), atol=1e-5)


def test_pairs_name_encoder_and_decoder() -> None:
    original, model, plan = decomposed(Mixed)
    found = alds.pairs(model, plan)
    assert [pair.name for pair in found] == [layer.name for layer in plan.layers]
    for pair in found:
        assert pair.module is model.get_submodule(pair.name)
        assert pair.encoder is pair.module[0]
        assert pair.encoder.bias is None
        assert pair.decoder.bias is None or torch.equal(pair.decoder.bias, original.get_submodule(pair.name).bias)
    with pytest.raises(PlanMismatch, match="reflect is a Conv2d, not a pair of layers"):
        alds.pairs(original, plan)


def test_proof_holds_after_training_and_fails_after_tampering() -> None:
    original, model, plan = decomposed(Mixed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        model.norm.running_mean.add_(0.2)
    assert alds.prove(original, model, plan, IMAGE).network < 1e-5
    first = alds.pairs(model, plan)[0]
    first.encoder.dilation = (2, 2)
    with pytest.raises(ProofFailed, match=f"{first.name}: the factored form differs"):
        alds.prove(original, model, plan, IMAGE)


def test_proof_fails_when_the_network_is_wired_differently() -> None:
    original, model, plan = decomposed(Shared)
    model.again = copy.deepcopy(model.middle)
    with torch.no_grad():
        model.again[1].weight.mul_(2)
    with pytest.raises(ProofFailed, match="the whole network") as caught:
        alds.prove(original, model, plan, IMAGE)
    assert caught.value.layer == ""


def test_restored_is_the_dense_network_with_reconstructed_weights() -> None:
    original, model, plan = decomposed(Shared)
    before = copy.deepcopy(original.state_dict())
    twin = restored(original, model, plan)
    sample = images(2, 3, 16, 16)
    assert torch.allclose(twin(sample), model(sample), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    middle = next(layer for layer in plan.layers if layer.name == "middle")
    assert torch.linalg.matrix_rank(twin.middle.weight.flatten(1), tol=1e-4) <= middle.rank * middle.groups


def test_gradients_reach_both_halves() -> None:
    _, model, plan = decomposed(Mixed)
    model.train()
    model(images(4, 3, 16, 16)).square().sum().backward()
    for pair in alds.pairs(model, plan):
        assert float(pair.encoder.weight.grad.abs().sum()) > 0
        assert float(pair.decoder.weight.grad.abs().sum()) > 0
