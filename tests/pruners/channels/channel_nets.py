"""The micro-suite of specs/channels.md section 5.3: small nets, one awkward pattern each, seeded."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from tests.pruners.channels.net_parts import Case, Net, Outputs, Tokens, b, c, p, separate_parts


def _shared() -> nn.Module:
    net = Net(lambda m, x: m.c3(F.relu(m.c2(F.relu(m.c1(m.c0(x)))))), c0=c(3, 16), c3=c(16, 24))
    net.c1, net.c2 = c(16, 16, bias=False), c(16, 16, bias=False)
    net.c2.weight = net.c1.weight
    return net


def _c2f(m: Net, x: Tensor) -> Tensor:
    first, second = m.c0(x).chunk(2, 1)
    third = F.relu(m.c1(second))
    return m.c3(torch.cat([first, second, third, F.relu(m.c2(third))], 1))


def _split(m: Net, x: Tensor) -> Tensor:
    first, second, third = torch.split(m.c0(x), [4, 12, 16], 1)
    return m.c2(torch.cat([third, m.c1(second), first], 1))


def _shuffle(m: Net, x: Tensor) -> Tensor:
    y = m.c0(x)
    n, k, h, w = y.shape
    return m.c1(F.relu(y.view(n, 2, k // 2, h, w).transpose(1, 2).reshape(n, k, h, w)))


def _shuffle_fixed(m: Net, x: Tensor) -> Tensor:
    n = x.shape[0]
    return m.c1(F.relu(m.c0(x).view(n, 2, 16, 16, 16).transpose(1, 2).reshape(n, 32, 16, 16)))


def _option_a(m: Net, x: Tensor) -> Tensor:
    y = F.relu(m.c0(x))
    return m.c3(F.relu(m.c2(F.relu(m.c1(y))) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))))


def _gram(m: Net, x: Tensor) -> Tensor:
    y = m.c0(x).flatten(2)
    return m.c1((torch.softmax(y @ y.transpose(1, 2) / 16, -1) @ y).view(x.shape[0], 16, 16, 16))


def _cls(m: Tokens, y: Tensor) -> Tensor:
    y = torch.cat([m.cls.expand(y.shape[0], -1, -1), y], 1) + m.pos
    y = y + m.up2(F.gelu(m.up1(m.ln(y))))
    return y[:, 0]


def _qkv(size: int) -> Callable[[Tokens, Tensor], Tensor]:
    def body(m: Tokens, y: Tensor) -> Tensor:
        n, t, _ = y.shape
        q, k, v = m.qkv(y).reshape(n, t, 3, 4, size).permute(2, 0, 3, 1, 4).unbind(0)
        z = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1) @ v
        return m.ln(y + m.proj(z.transpose(1, 2).flatten(2)))

    return body


def _separate(fused: bool, size: int) -> Callable[[Tokens, Tensor], Tensor]:
    def body(m: Tokens, y: Tensor) -> Tensor:
        n, t, _ = y.shape
        q, k, v = (f(y).view(n, t, 4, size).transpose(1, 2) for f in (m.q, m.k, m.v))
        if fused:
            z = F.scaled_dot_product_attention(q, k, v, scale=8**-0.5)
        else:
            z = torch.softmax(q @ k.transpose(-2, -1) * 8**-0.5, -1) @ v
        return y + m.proj(z.transpose(1, 2).flatten(2))

    return body


def _qkv_parts() -> dict[str, object]:
    return {"qkv": nn.Linear(32, 96), "proj": nn.Linear(32, 32), "ln": nn.LayerNorm(32)}


def _merge(m: Tokens, y: Tensor) -> Tensor:
    y = y.view(y.shape[0], 4, 4, -1)
    parts = [y[:, a::2, e::2] for a, e in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return m.red(m.ln(torch.cat(parts, -1))).flatten(1, 2)


def _windows(m: Tokens, y: Tensor) -> Tensor:
    n = y.shape[0]
    y = torch.roll(y.view(n, 4, 4, -1), (-1, -1), (1, 2))
    y = y.view(n, 2, 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(n * 4, 4, -1)
    y = m.mid(y)
    y = y.view(n, 2, 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, 4, 4, -1)
    return torch.roll(y, (1, 1), (1, 2)).flatten(1, 2)


class TrainBranch(Outputs):
    def forward(self, x: Tensor) -> object:
        y = F.relu(self.c0(x))
        logits = self.fc(F.relu(self.c1(y)).mean((2, 3)))
        return (logits, self.aux(y.mean((2, 3)))) if self.training else logits


def _se(m: Net, x: Tensor) -> Tensor:
    y = F.relu(m.c0(x))
    return m.c1(y * torch.sigmoid(m.e2(F.relu(m.e1(y.mean((2, 3), keepdim=True))))))


def _chain() -> nn.Module:
    return Net(lambda m, x: F.relu(m.c1(F.relu(m.bn(m.c0(x))))), c0=c(3, 16), bn=nn.BatchNorm2d(16), c1=c(16, 24))


def _flatten() -> nn.Module:
    def body(m: Net, x: Tensor) -> Tensor:
        return F.relu(m.mid(F.relu(m.c0(x)).flatten(1)))

    return Net(body, 32, c0=c(3, 16), mid=nn.Linear(4096, 32))


def _residual() -> nn.Module:
    def body(m: Net, x: Tensor) -> Tensor:
        y = m.c0(x)
        return m.c3(F.relu(y + m.c2(F.relu(m.c1(y)))))

    return Net(body, c0=c(3, 16), c1=c(16, 32), c2=c(32, 16), c3=c(16, 24))


def _glu() -> nn.Module:
    return Net(lambda m, x: m.c1(F.glu(m.c0(x), 1)), c0=c(3, 32), c1=c(16, 24))


def _slice(m: Net, x: Tensor) -> Tensor:
    y = F.relu(m.c0(x))
    return m.c1(y[:, :10]) + m.c2(y[:, 10:])


SUITE = [
    Case("chain", _chain, 0.29),
    Case("flatten_linear", _flatten, 0.23),
    Case("residual", _residual, 0.27),
    Case(
        "reused_module",
        lambda: Net(lambda m, x: m.c2(F.relu(m.c1(F.relu(m.c1(m.c0(x)))))), c0=c(3, 16), c1=c(16, 16), c2=c(16, 24)),
        0.30,
    ),
    Case("shared_weight", _shared, 0.30),
    Case(
        "functional_conv",
        lambda: Net(
            lambda m, x: m.c1(F.relu(F.conv2d(x, m.w, m.v, padding=1))), w=p(16, 3, 3, 3), v=p(16), c1=c(16, 24)
        ),
        0.30,
    ),
    Case(
        "conv_then_view_conv1d",
        lambda: Net(lambda m, x: m.k(F.relu(m.c0(x)).flatten(2)).mean(2), c0=c(3, 16), k=nn.Conv1d(16, 24, 3)),
        0.29,
    ),
    Case(
        "linear_view_conv",
        lambda: Net(lambda m, x: m.c1(m.up(x.mean((2, 3))).view(-1, 16, 4, 4)), up=nn.Linear(3, 256), c1=c(16, 24)),
        0.31,
    ),
    Case("prelu", lambda: Net(lambda m, x: m.c1(m.act(m.c0(x))), c0=c(3, 16), act=nn.PReLU(16), c1=c(16, 24)), 0.29),
    Case(
        "l2_normalize",
        lambda: Net(lambda m, x: F.normalize(m.c1(F.relu(m.c0(x))).mean((2, 3))), c0=c(3, 16), c1=c(16, 24)),
        0.52,
    ),
    Case(
        "concat",
        lambda: Net(
            lambda m, x: m.c3(F.relu(m.c2(torch.cat([m.c0(x), m.c1(x)], 1)))),
            c0=c(3, 8),
            c1=c(3, 12),
            c2=c(20, 16),
            c3=c(16, 24),
        ),
        0.29,
    ),
    Case(
        "concat_with_input",
        lambda: Net(
            lambda m, x: m.c2(F.relu(m.c1(torch.cat([m.c0(x), x], 1)))), c0=c(3, 8), c1=c(11, 16), c2=c(16, 24)
        ),
        0.35,
    ),
    Case("chunk_c2f", lambda: Net(_c2f, c0=c(3, 32), c1=c(16, 16), c2=c(16, 16), c3=c(64, 24)), 0.26),
    Case("chunk_add", lambda: Net(lambda m, x: m.c1(sum(m.c0(x).chunk(2, 1))), c0=c(3, 32), c1=c(16, 24)), 0.33),
    Case("glu", _glu, 0.60),
    Case("channel_slice", lambda: Net(_slice, c0=c(3, 32), c1=c(10, 24), c2=c(22, 24)), 0.28),
    Case("split_uneven", lambda: Net(_split, c0=c(3, 32), c1=c(12, 10), c2=c(30, 24)), 0.29),
    Case("channel_shuffle", lambda: Net(_shuffle, c0=c(3, 32), c1=c(32, 24, groups=2)), 0.34),
    Case("shuffle_hardcoded", lambda: Net(_shuffle_fixed, c0=c(3, 32), c1=c(32, 24, groups=2)), 0.34),
    Case("pixel_shuffle", lambda: Net(lambda m, x: m.c1(F.pixel_shuffle(m.c0(x), 2)), c0=c(3, 32), c1=c(8, 24)), 0.34),
    Case(
        "pixel_unshuffle", lambda: Net(lambda m, x: m.c1(F.pixel_unshuffle(m.c0(x), 2)), c0=c(3, 8), c1=c(32, 24)), 0.26
    ),
    Case(
        "optionA_pad",
        lambda: Net(_option_a, c0=c(3, 16), c1=nn.Conv2d(16, 32, 3, 2, 1), c2=c(32, 32), c3=c(32, 24)),
        0.36,
    ),
    Case(
        "depthwise",
        lambda: Net(
            lambda m, x: m.c2(F.relu(m.c1(m.c0(x)))), c0=c(3, 16), c1=c(16, 16, groups=16), c2=nn.Conv2d(16, 24, 1)
        ),
        0.34,
    ),
    Case(
        "depthwise_multiplier",
        lambda: Net(lambda m, x: m.c2(F.relu(m.c1(m.c0(x)))), c0=c(3, 16), c1=c(16, 32, groups=16), c2=c(32, 24)),
        0.31,
    ),
    Case(
        "grouped",
        lambda: Net(
            lambda m, x: m.c2(F.relu(m.c1(m.c0(x)))), c0=c(3, 32), c1=c(32, 64, groups=4), c2=nn.Conv2d(64, 24, 1)
        ),
        0.26,
    ),
    Case(
        "grouped_transposed",
        lambda: Net(
            lambda m, x: m.c2(F.relu(m.c1(m.c0(x)))),
            c0=c(3, 32),
            c1=nn.ConvTranspose2d(32, 32, 3, padding=1, groups=4),
            c2=c(32, 24),
        ),
        0.83,
    ),
    Case(
        "transposed",
        lambda: Net(
            lambda m, x: m.c2(F.relu(m.c1(m.c0(x)))), c0=c(3, 32), c1=nn.ConvTranspose2d(32, 16, 2, 2), c2=c(16, 24)
        ),
        0.32,
    ),
    Case(
        "groupnorm",
        lambda: Net(lambda m, x: m.c1(F.relu(m.gn(m.c0(x)))), c0=c(3, 32), gn=nn.GroupNorm(8, 32), c1=c(32, 24)),
        0.16,
    ),
    Case("se_gate", lambda: Net(_se, c0=c(3, 32), e1=nn.Conv2d(32, 8, 1), e2=nn.Conv2d(8, 32, 1), c1=c(32, 24)), 0.25),
    Case(
        "layer_scale",
        lambda: Net(
            lambda m, x: m.c2((y := m.c0(x)) + m.g.view(1, -1, 1, 1) * m.c1(y)),
            c0=c(3, 16),
            c1=c(16, 16),
            g=p(16),
            c2=c(16, 24),
        ),
        0.30,
    ),
    Case(
        "layer_scale_fixed_shape",
        lambda: Net(
            lambda m, x: m.c2((y := m.c0(x)) + m.g.view(16, 1, 1) * m.c1(y)),
            c0=c(3, 16),
            c1=c(16, 16),
            g=p(16),
            c2=c(16, 24),
        ),
        0.30,
    ),
    Case(
        "buffer_scale", lambda: Net(lambda m, x: m.c1(m.c0(x) * m.s), c0=c(3, 16), s=b(1, 16, 1, 1), c1=c(16, 24)), 0.29
    ),
    Case(
        "frozen_bn",
        lambda: Net(lambda m, x: m.c1(F.relu(m.bn(m.c0(x)))), c0=c(3, 16), bn=FrozenBatchNorm2d(16), c1=c(16, 24)),
        0.30,
    ),
    Case(
        "detached_branch",
        lambda: Net(
            lambda m, x: m.c2((y := m.c0(x)).relu()) + m.c3(y.detach()), c0=c(3, 16), c2=c(16, 24), c3=c(16, 24)
        ),
        0.27,
    ),
    Case("gram_matrix", lambda: Net(_gram, c0=c(3, 16), c1=c(16, 24)), 0.29),
    Case(
        "cls_token_pos",
        lambda: Tokens(
            _cls,
            32,
            cls=p(1, 1, 32),
            pos=p(1, 17, 32),
            ln=nn.LayerNorm(32),
            up1=nn.Linear(32, 64),
            up2=nn.Linear(64, 32),
        ),
        0.32,
    ),
    Case(
        "layernorm_heavy",
        lambda: Tokens(lambda m, y: m.mid(m.ln(y)), 8, 768, ln=nn.LayerNorm(768), mid=nn.Linear(768, 8)),
        0.18,
        0.2,
    ),
    Case("attn_qkv_fixed", lambda: Tokens(_qkv(8), 32, **_qkv_parts()), 0.35),
    Case("attn_qkv_flexible", lambda: Tokens(_qkv(-1), 32, **_qkv_parts()), 0.35),
    Case("attn_separate_fixed", lambda: Tokens(_separate(False, 8), 32, **separate_parts()), 0.33),
    Case("attn_separate_fused", lambda: Tokens(_separate(True, -1), 32, **separate_parts()), 0.33),
    Case(
        "mha",
        lambda: Tokens(
            lambda m, y: m.ln(y + m.mha(y, y, y, need_weights=False)[0]),
            32,
            mha=nn.MultiheadAttention(32, 4, batch_first=True),
            ln=nn.LayerNorm(32),
        ),
        0.33,
    ),
    Case("einsum_proj", lambda: Tokens(lambda m, y: torch.einsum("bnd,de->bne", y, m.w), 24, w=p(32, 24)), 1.0),
    Case("patch_merging", lambda: Tokens(_merge, 32, 16, ln=nn.LayerNorm(64), red=nn.Linear(64, 32)), 0.34),
    Case("window_partition", lambda: Tokens(_windows, 24, 16, mid=nn.Linear(16, 24)), 0.40),
    Case("lstm", lambda: Tokens(lambda m, y: m.rnn(y)[0], 24, rnn=nn.LSTM(32, 24, batch_first=True)), 1.0),
    Case("dataclass_like_output", Outputs, 0.25),
    Case("train_only_branch", TrainBranch, 0.31),
]
