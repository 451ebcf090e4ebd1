"""Patterns beyond the micro-suite of the specification, in the same form for the same tests."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from tests.pruners.channels.net_parts import Case, Net, Outputs, Tokens, c, separate_parts


def _two(body: Callable[[Net, Tensor], Tensor], last: int = 24, **parts: object) -> nn.Module:
    return Net(body, last, **{"c0": c(3, 16), "c1": c(16, 24), **parts})


def _shift(m: Net, x: Tensor) -> Tensor:
    y = m.c0(x)
    z = torch.zeros_like(y)
    z[:, :4], z[:, 4:8], z[:, 8:] = y[:, 4:8], y[:, :4], y[:, 8:]
    return m.c1(z)


def _write(m: Net, x: Tensor) -> Tensor:
    y = m.c0(x)
    y[:, :8] = 2 * y[:, :8]
    return m.c1(y)


def _write_at_random(m: Net, x: Tensor) -> Tensor:
    """In train mode only the trace has pure operators: nothing else draws numbers."""
    y = m.drop(m.c0(x))
    y[:, :8] += m.c0(x)[:, :8]
    return m.c1(y)


def _alias(m: Net, x: Tensor) -> Tensor:
    y = m.c0(x)
    part = y[:, :8]
    part.add_(1.0)
    return m.c1(y)


def _autocast(m: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        y = F.relu(m.c0(x))
    return m.c1(y)


def _einsum_attention(m: Tokens, y: Tensor) -> Tensor:
    n, t, _ = y.shape
    q, k, v = (f(y).view(n, t, 4, -1) for f in (m.q, m.k, m.v))
    z = torch.einsum("bhqk,bkhd->bqhd", torch.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5, -1), v)
    return y + m.proj(z.flatten(2))


def _relative(m: Net, x: Tensor) -> Tensor:
    """Rows of a table at distances that the code computes in single precision, as MViTv2 does; the norm counts."""
    y = m.norm(F.relu(m.c0(x)).mean(3).transpose(1, 2))  # (batch, rows, channels)
    distance = torch.arange(16)[:, None] * 1.0 - (torch.arange(16)[None] - 15) * 1.0
    attention = torch.einsum("bqc,qkc->bqk", y, m.table[distance.long()]).softmax(-1)
    return m.c1((attention @ y).transpose(1, 2).unsqueeze(3))


def _tokens(m: Net, x: Tensor, made: Callable[[int], Tensor]) -> Tensor:
    """(batch, rows, channels) through a norm, which counts the channels, times what the forward makes itself."""
    return m.c1((m.norm(F.relu(m.c0(x)).mean(3).transpose(1, 2)) * made(16)).transpose(1, 2).unsqueeze(3))


def _single(m: Net, x: Tensor) -> Tensor:
    """The code casts its result, and a buffer is in float64: only the proof in single precision applies."""
    y = m.norm(F.relu(m.c0(x)).mean(3).transpose(1, 2) + m.shift.to(x.dtype))
    return m.c1(y.transpose(1, 2).unsqueeze(3))


class SingleOutput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


def _in_single() -> nn.Module:
    return SingleOutput(_single, c0=c(3, 16), c1=c(16, 24), norm=nn.LayerNorm(16), shift=torch.ones(1).double())


def _written_rows(rows: int) -> Tensor:
    table = torch.zeros(rows, 1)
    table[:, 0] = torch.arange(rows) / rows
    table[:2].mul_(3.0)
    return table


def _sinusoids(rows: int) -> Tensor:
    places = torch.arange(rows).float()[:, None] * torch.exp(torch.linspace(0, -2, 1))
    return places.sin() + torch.exp(-places * places)


class ArgmaxNet(Outputs):
    def forward(self, x: Tensor) -> object:
        logits = self.fc(F.relu(self.c1(F.relu(self.c0(x)))).mean((2, 3)))
        return logits, logits.argmax(1)


class MaxIndexNet(Outputs):
    def forward(self, x: Tensor) -> object:
        return self.fc(F.relu(self.c1(F.relu(self.c0(x)))).mean((2, 3))).max(1)[1]


def _eca(m: Net, x: Tensor) -> Tensor:
    y = F.relu(m.c0(x))
    gate = m.k(y.mean((2, 3)).unsqueeze(1)).squeeze(1)
    return m.c1(y * torch.sigmoid(gate)[:, :, None, None])


def _weight_normed() -> nn.Module:
    net = _two(lambda m, x: m.c1(F.relu(m.c0(x))))
    torch.nn.utils.parametrizations.weight_norm(net.c0)
    return net


def _rows(m: Net, x: Tensor) -> Tensor:
    """All positions of all images as rows; with meshgrid the trace has pure operators: a view of one, a copy of two."""
    n, _, height, width = x.shape
    down, right = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    y = F.relu(m.bn(m.c0(x))) + down - right
    rows = m.fc0(y.permute(0, 2, 3, 1).reshape(n * height * width, 16))
    return m.c1(rows.view(n, height, width, 24).permute(0, 3, 1, 2))


def _pool_channels(m: Net, x: Tensor) -> Tensor:
    y = F.relu(m.c0(x)).flatten(2).transpose(1, 2)  # (batch, positions, channels)
    return m.k(F.max_pool1d(y, 2).transpose(1, 2)).mean(2)


PERM = torch.randperm(16, generator=torch.Generator().manual_seed(3))

EXTRA = [
    Case("index_by_buffer", lambda: _two(lambda m, x: m.c1(m.c0(x)[:, m.perm]), perm=PERM.clone()), 1.0),
    Case(
        "index_select", lambda: _two(lambda m, x: m.c1(torch.index_select(m.c0(x), 1, m.perm)), perm=PERM.clone()), 1.0
    ),
    Case("roll_channels", lambda: _two(lambda m, x: m.c1(torch.roll(m.c0(x), 3, 1))), 1.0),
    Case("shift_into_zeros", lambda: _two(_shift), 1.0),
    Case("argmax_classes", ArgmaxNet, 0.35),
    Case("cumsum_channels", lambda: _two(lambda m, x: m.c1(torch.cumsum(m.c0(x), 1))), 1.0),
    Case("stack_mean", lambda: _two(lambda m, x: m.c1(torch.stack([m.c0(x), m.c2(x)]).mean(0)), c2=c(3, 16)), 0.35),
    Case("conv_over_channels", lambda: _two(_eca, k=nn.Conv1d(1, 1, 3, padding=1)), 1.0),
    Case("pool_over_channels", lambda: _two(_pool_channels, k=nn.Conv1d(8, 24, 1)), 1.0),
    Case("max_index_output", MaxIndexNet, 0.35),
    Case("mean_gate", lambda: _two(lambda m, x: m.c1((y := m.c0(x)) * torch.sigmoid(y.mean(1, keepdim=True)))), 0.35),
    Case("amax_gate", lambda: _two(lambda m, x: m.c1((y := m.c0(x)) * torch.sigmoid(y.amax(1, keepdim=True)))), 0.35),
    Case("weight_norm", _weight_normed, 0.35),
    Case("slice_write", lambda: _two(_write), 1.0),
    Case("slice_write_at_random", lambda: _two(_write_at_random, drop=StochasticDepth(0.5, "row")), 1.0),
    Case("alias_add", lambda: _two(_alias), 1.0),
    Case("never_called", lambda: _two(lambda m, x: m.c1(F.relu(m.c0(x))), spare=c(3, 16)), 0.6),
    Case("autocast_region", lambda: _two(_autocast), 0.35),
    Case("einsum_attention", lambda: Tokens(_einsum_attention, 32, **separate_parts()), 0.40),
    Case("rows_of_all_images", lambda: _two(_rows, bn=nn.BatchNorm2d(16), fc0=nn.Linear(16, 24), c1=c(24, 24)), 0.35),
    Case("made_by_writes", lambda: _two(lambda m, x: _tokens(m, x, _written_rows), norm=nn.LayerNorm(16)), 0.35),
    Case("made_in_float32", lambda: _two(lambda m, x: _tokens(m, x, _sinusoids), norm=nn.LayerNorm(16)), 0.35),
    Case("single_precision", _in_single, 0.35),
    Case(
        "relative_positions",
        lambda: _two(_relative, norm=nn.LayerNorm(16), table=nn.Parameter(0.1 * torch.randn(31, 16))),
        0.35,
    ),
    Case("tensor_split", lambda: _two(lambda m, x: m.c1(sum(torch.tensor_split(m.c0(x), 2, 1))), c0=c(3, 32)), 0.40),
]
