"""Multiply-accumulates of single operators: arithmetic on shapes, and the table that reads shapes off a call.

One multiply-accumulate (MAC) is one multiplication and one addition; FLOPs = 2 x MACs. Three kinds of operator:
those in `COUNTED`; those in `NOT_ARITHMETIC` and `FREE`, which by the rule cost no MACs; all others, which a trace
lists as uncounted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

RULE = (
    "MACs of convolutions, matrix products and attention (both products), dense, bias included; not counted: "
    "normalisation, activations, pooling, resizing, softmax, element-wise arithmetic"
)

Shape = Sequence[int]


def convolution_macs(inputs: Shape, weight: Shape, outputs: Shape, *, transposed: bool) -> int:
    """MACs of a (grouped, dilated, transposed) convolution of any number of dimensions.

    Args:
        inputs: (batch, in, *spatial).
        weight: (out, in/groups, *kernel), or (in, out/groups, *kernel) when transposed.
        outputs: (batch, out, *spatial).
        transposed: whether each input element, not each output element, meets the kernel.

    Example:
        64 -> 64 channels, 3x3, 8 groups, 10x10 outputs: 64 * 100 * (8 * 9) = 460,800.
    """
    meeting = inputs if transposed else outputs
    return prod(meeting) * prod(weight[1:])


def matmul_macs(left: Shape, right: Shape) -> int:
    """MACs of (..., m, k) @ (..., k, n) with equal leading dimensions; vectors count as one row or column.

    Example:
        (5, 64) @ (64, 32): 5 * 64 * 32 = 10,240.
    """
    columns = right[-1] if len(right) > 1 else 1
    return prod(left) * columns


def attention_macs(query: Shape, key: Shape, value: Shape) -> int:
    """MACs of softmax(Q K^T) V: both products. query: (..., q, d), key: (..., k, d), value: (..., k, v)."""
    rows = prod(query[:-1])
    return rows * key[-2] * (query[-1] + value[-1])


def _convolution(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    transposed = bool(arguments[6])
    return convolution_macs(arguments[0].shape, arguments[1].shape, outputs[0].shape, transposed=transposed)


def _product(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    return matmul_macs(arguments[0].shape, arguments[1].shape)


def _added_product(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    return matmul_macs(arguments[1].shape, arguments[2].shape)


def _attention(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    return attention_macs(arguments[0].shape, arguments[1].shape, arguments[2].shape)


def _deformable(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    return convolution_macs(arguments[0].shape, arguments[1].shape, outputs[0].shape, transposed=False)


def _recurrent(arguments: Sequence[Any], outputs: Sequence[Any]) -> int:
    steps: int = prod(arguments[0].shape[:-1])  # input: (time, batch, features); weights: (gates * hidden, features)
    gates: int = prod(arguments[1].shape) + prod(arguments[2].shape)
    return steps * gates


Counter = Callable[[Sequence[Any], Sequence[Any]], int]

COUNTED: Mapping[str, Counter] = {
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_overrideable": _convolution,
    "aten::mm": _product,
    "aten::bmm": _product,
    "aten::mv": _product,
    "aten::dot": _product,
    "aten::vdot": _product,
    "aten::addmm": _added_product,
    "aten::baddbmm": _added_product,
    "aten::addbmm": _added_product,
    "aten::addmv": _added_product,
    "aten::_addmm_activation": _added_product,
    "aten::_scaled_dot_product_flash_attention": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_efficient_attention": _attention,
    "aten::_scaled_dot_product_cudnn_attention": _attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": _attention,
    "aten::mkldnn_rnn_layer": _recurrent,
    "torchvision::deform_conv2d": _deformable,
}
"""operator -> its MACs from (arguments, outputs); tensors only give their shapes."""


def _names(text: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in text.split())


FREE = _names(
    """_assert_async _assert_scalar _assert_tensor_metadata _local_scalar_dense _reshape_alias _unsafe_view alias arange
    as_strided as_strided_ detach empty empty_like empty_strided eye full full_like is_same_size item lift_fresh
    lift_fresh_copy linspace new_empty new_empty_strided new_full new_ones new_zeros ones ones_like randperm resize_
    result_type scalar_tensor set_ sym_numel sym_size sym_stride zeros zeros_like"""
)
"""Operators that read and write nothing worth counting: views (also recognised by their schema) and constants."""

_NORMALISATION = _names(
    """_batch_norm_no_update _batch_norm_with_update _fused_rms_norm _native_batch_norm_legit
    _native_batch_norm_legit_no_training bernoulli cudnn_batch_norm dropout linalg_vector_norm miopen_batch_norm
    native_batch_norm native_dropout native_group_norm native_layer_norm norm rand rand_like randn randn_like"""
)
_ACTIVATIONS = _names(
    """_log_softmax _prelu_kernel _safe_softmax _softmax celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh
    leaky_relu log_sigmoid_forward mish prelu relu relu6 rrelu_with_noise selu sigmoid silu softplus softshrink tanh
    threshold"""
)
_POOLING = _names(
    """_adaptive_avg_pool2d _adaptive_avg_pool3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact2d
    adaptive_max_pool2d adaptive_max_pool3d all amax amin any argmax argmin avg_pool1d avg_pool2d avg_pool3d
    channel_shuffle col2im count_nonzero cumsum im2col logsumexp max max_pool2d max_pool2d_with_indices
    max_pool3d_with_indices mean min mkldnn_max_pool2d pixel_shuffle pixel_unshuffle prod std std_mean sum
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d var var_mean"""
)
_ELEMENTWISE = _names(
    """abs acos add addcdiv addcmul asin atan atan2 bitwise_and bitwise_not bitwise_or bitwise_xor ceil clamp clamp_max
    clamp_min cos cosh div eq erf erfinv exp exp2 expm1 fill floor floor_divide fmax fmin fmod frac ge gt isfinite isinf
    isnan le lerp log log1p log2 logical_and logical_not logical_or logical_xor lt masked_fill maximum minimum mul
    nan_to_num ne neg pow reciprocal remainder round rsqrt rsub sign sin sinh sqrt square sub tan trunc where zero"""
)
_MOVES = _names(
    """_index_put_impl _pack_padded_sequence _to_copy _unique2 as_strided_scatter broadcast_tensors bucketize cat clone
    constant_pad_nd contiguous copy diag_embed embedding expand_copy flip gather index index_add index_put index_select
    masked_select meshgrid nonzero one_hot permute_copy reflection_pad1d reflection_pad2d repeat repeat_interleave
    replication_pad1d replication_pad2d roll scatter scatter_add searchsorted select_scatter slice_scatter sort
    split_with_sizes_copy stack topk tril tril_indices triu triu_indices unfold_copy unique_dim view_copy"""
)
NOT_ARITHMETIC = _NORMALISATION | _ACTIVATIONS | _POOLING | _ELEMENTWISE | _MOVES
"""Operators that the rule leaves out of the MACs; their memory traffic is counted."""


def base_name(name: str) -> str:
    """An operator's name without the underscore of its in-place form: `aten::relu_` is `aten::relu`."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name
