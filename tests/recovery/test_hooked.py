"""Networks that torch.export refuses are recovered by hooks: nearer outputs, zeros kept, the traced result's equal."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress_cli.recovery import CannotTrace, Correspondence, DoNotMatch, RecoveryOptions, recover
from tests.recovery.nets import Residual, images, prune_, randomise


class Refused(nn.Module):
    """A body behind a branch on a value, which no exporter can follow."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if float(x.sum()) > -1e9 else -x)


def pair(body: nn.Module, sparsity: float = 0.6) -> tuple[nn.Module, nn.Module]:
    dense = Refused(randomise(body))
    compressed = copy.deepcopy(dense)
    prune_(compressed, sparsity)
    return dense.eval(), compressed.eval()


def test_outputs_come_nearer_and_zeros_stay() -> None:
    dense, compressed = pair(Residual())
    zeros = {name: tensor == 0 for name, tensor in compressed.named_parameters() if tensor.dim() > 1}
    kept = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    seen: list[int] = []
    record = recover(dense, compressed, [images(150)], on_step=lambda done, total, text: seen.append(done))
    assert record.kept
    assert record.after < 0.5 * record.before
    assert seen == list(range(7))
    assert all(torch.equal(dict(compressed.named_parameters())[name] == 0, mask) for name, mask in zeros.items())
    assert all(torch.equal(kept[name], tensor) for name, tensor in dense.state_dict().items())
    assert "cannot be traced" in record.skipped[0][1]


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3)
    )


def test_without_sums_and_norms_it_is_what_the_traced_routine_finds() -> None:
    refused, small = pair(plain())
    dense, traced = copy.deepcopy(refused.body), copy.deepcopy(small.body)
    options = RecoveryOptions(weighted=False)
    recover(refused, small, [images(120)], options=options)
    recover(dense, traced, [images(120)], options=options)
    for name, tensor in traced.state_dict().items():
        torch.testing.assert_close(small.body.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_removed_channels_and_what_cannot_work() -> None:
    dense, _ = pair(plain())
    small = Refused(
        nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3))
    )
    keep = [0, 1, 3, 4]
    with torch.no_grad():
        state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
        state["body.0.weight"], state["body.0.bias"] = state["body.0.weight"][keep], state["body.0.bias"][keep]
        state["body.2.weight"] = state["body.2.weight"][:, :2]
        small.load_state_dict(state)
    with pytest.raises(DoNotMatch, match="4 output channels, 6"):
        recover(dense, small, [images()])
    known = Correspondence(kept_outputs={"body.0": keep}, ignore=("body.4",))
    record = recover(dense, small, [images(100)], correspondence=known)
    assert record.after < record.before
    assert ("body.4.weight", "ignored") in record.skipped
    with pytest.raises(CannotTrace):
        recover(dense, copy.deepcopy(dense), [images()], zeros={"body.0.weight": 3})
    with pytest.raises(CannotTrace):
        recover(dense, copy.deepcopy(dense), [torch.zeros(10, 2)])
