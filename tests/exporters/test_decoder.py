"""Decoder sub-graphs, evaluated by ONNX Runtime and by onnx's reference evaluator: the stored tensor, bit for bit."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from exporters.bitcode import encode_gap8, encode_rice
from exporters.decoder import Block, Emitter, emit_block, emit_zero
from exporters.values import VALUE_CODES, Quantized, quantize

ORT_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}


def model_of(emitter: Emitter, tensors: tuple[Quantized, ...]) -> onnx.ModelProto:
    outputs = [
        helper.make_tensor_value_info(t.name, ORT_TYPES[str(t.restored.dtype)], t.restored.shape) for t in tensors
    ]
    graph = helper.make_graph(emitter.nodes, "d", [], outputs, list(emitter.constants.values()))
    imports = [helper.make_opsetid("", emitter.opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def evaluate(block: Block, opset: int = 18, *, reference: bool = True) -> None:
    """Assert that both runtimes give every tensor of the block back."""
    emitter = Emitter(opset, "_p")
    emit_block(emitter, block)
    model = model_of(emitter, block.tensors)
    results = [onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})]
    if reference:
        results.append(ReferenceEvaluator(model).run(None, {}))
    for arrays in results:
        for tensor, array in zip(block.tensors, arrays, strict=True):
            assert array.dtype == tensor.restored.dtype
            assert array.shape == tensor.restored.shape
            assert array.tobytes() == tensor.restored.tobytes()


def sparse(shape: tuple[int, ...], density: float, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.normal(size=shape)
    if dtype == "int8":
        values = np.rint(values * 40).clip(-127, 127)
    array = np.where(random.random(shape) < density, values, 0).astype(dtype)
    if not array.any():
        array.reshape(-1)[-1] = 7
    return array


def rice(*tensors: Quantized, k: int | None = None) -> Block:
    kept = np.concatenate([tensor.kept for tensor in tensors])
    return Block(tensors, encode_rice(np.flatnonzero(kept), len(kept), k))


def gap8(*tensors: Quantized) -> Block:
    kept = np.concatenate([tensor.kept for tensor in tensors])
    return Block(tensors, encode_gap8(np.flatnonzero(kept), len(kept)))


@pytest.mark.parametrize("k", range(13))
def test_every_rice_parameter(k: int) -> None:
    """Parameters above 8 need the 8-bit plane: with planes of 4, 2 and 1 bits a wrong tensor came back in silence."""
    array = sparse((37, 211), 0.01)
    evaluate(rice(quantize("w", array, "native", 0, masked=True), k=k))


@pytest.mark.parametrize("density", [1e-4, 1e-3, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_densities_and_opsets(density: float, opset: int) -> None:
    array = sparse((101, 133), density)
    evaluate(rice(quantize("w", array, "native", 0, masked=True)), opset)
    evaluate(gap8(quantize("w", array, "native", 0, masked=True)), opset)


@pytest.mark.parametrize("code", ["native", *VALUE_CODES[1:]])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_value_codes(code: str, dtype: str) -> None:
    if (code, dtype) == ("f16", "float16"):
        code = "native"
    array = sparse((5, 3, 3, 3), 0.4, dtype=dtype)
    tensor = quantize("w", array, code, 0, masked=True)
    evaluate(rice(tensor))
    evaluate(rice(tensor, k=2), reference=False)
    evaluate(Block((quantize("w", sparse((5, 7), 1.1, dtype=dtype), code, 1, masked=False),), None))
    reserved = quantize("w", array, code, 0, masked=True, reserve_zero=True)
    evaluate(gap8(reserved))
    evaluate(Block((reserved,), None), reference=False)


@pytest.mark.parametrize("code", ["native", "f16", "q8", "q5", "cb3", "cb8"])
@pytest.mark.parametrize("density", [0.15, 0.6])
def test_several_tensors_in_one_decoder(code: str, density: float) -> None:
    shapes = [(4, 3, 3, 3), (17,), (1, 1), (2, 3, 4, 5, 6), (8, 9)]
    tensors = tuple(
        quantize(f"w{i}", sparse(shape, density, seed=i) * 10.0**i, code, 0, masked=True)
        for i, shape in enumerate(shapes)
        if len(shape) > 1 or code != "q8"
    )
    evaluate(rice(*tensors))
    evaluate(Block(tuple(quantize(t.name, np.abs(t.restored) + 1, code, 0, masked=False) for t in tensors), None))


@pytest.mark.parametrize("shape", [(3,), (1, 1), (1, 1, 1, 1), (8,), (2, 4), (), (9, 1)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 1.5, np.float32)
    evaluate(rice(quantize("w", array, "native", 0, masked=True)))
    evaluate(Block((quantize("w", array, "f16", 0, masked=False),), None))


def test_int8() -> None:
    evaluate(rice(quantize("w", sparse((20, 9), 0.2, dtype="int8"), "native", 0, masked=True)))
    evaluate(rice(quantize("w", sparse((20, 9), 0.7, dtype="int8"), "native", 0, masked=True)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_zeros_only(dtype: str) -> None:
    array = np.zeros((3, 5), dtype)
    tensor = Quantized("w", "native", array, array.reshape(-1), np.zeros(15, np.bool_))
    emitter = Emitter(17, "_p")
    emit_zero(emitter, tensor)
    model = model_of(emitter, (tensor,))
    for array in (onnxruntime.InferenceSession(model.SerializeToString()).run(None, {})[0],
                  ReferenceEvaluator(model).run(None, {})[0]):  # fmt: skip
        assert array.tobytes() == tensor.restored.tobytes()


def test_constants_are_stored_once() -> None:
    emitter = Emitter(18, "_p")
    assert emitter.int64(3) == emitter.int64(3)
    assert emitter.int64(3) != emitter.constant(np.array(3, np.int64))
    assert emitter.int64(3) != emitter.int32(3)
    assert len(emitter.constants) == 3
