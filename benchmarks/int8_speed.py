"""Static int8 with packed weights: bytes, fusion, output error and speed against the float file, interleaved.

    python benchmarks/int8_speed.py --work /tmp/packing --output benchmarks/results/int8_speed.json

`gemm`: what a bare product of 8-bit numbers reaches against floats here (processor time of a thread, least of the
repetitions), the limit for whole networks. Without VNNI an AVX2 core multiplies 32 pairs of bytes in the two
instructions (vpmaddubsw, vpmaddwd) that multiply 16 pairs of floats: twice as many, not three times.

Calibration and comparison use random images: sizes and speed do not depend on them; accuracy is in tiers_cifar.json.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from packing_models import NAMES, pruned
from packing_tiers import processor

from exporters.feeds import compare, random_feeds
from exporters.int8 import METHODS, has_vnni, quantize_int8
from exporters.unpacking import unpack
from exporters.verify import session
from profilers.latency import compare as compare_latency
from profilers.size import file_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/packing"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/int8_speed.json"))
    parser.add_argument("--models", nargs="*", default=["resnet18", "mobilenet_v2"], choices=list(NAMES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--gemm-only", action="store_true", help="only renew that part of the output file")
    arguments = parser.parse_args()
    if arguments.gemm_only:
        known = json.loads(arguments.output.read_text(encoding="utf-8"))
        known["gemm"] = gemms()
        arguments.output.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        return
    document: dict[str, Any] = {
        "what": "static int8 (U8S8, per channel, packed) of networks with 90 % zeros",
        "machine": {"processor": processor(), "vnni": has_vnni(), "threads": 1},
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        "gemm": gemms(),
        "networks": {name: network(name, arguments.work, arguments.methods) for name in arguments.models},
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


SHAPES = ((3136, 576, 64), (784, 1152, 128), (196, 2304, 256), (512, 512, 512))
"""(rows, inner, columns): ResNet-18's convolutions as products, and a square one."""
KINDS = {"float": (np.float32, np.float32), "u8s8": (np.uint8, np.int8), "u8u8": (np.uint8, np.uint8)}
KINDS["s8s8"] = (np.int8, np.int8)


def gemms() -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        runners = {kind: product(shape, kind) for kind in KINDS}
        best = dict.fromkeys(KINDS, float("inf"))
        for _ in range(25):
            for kind, (runner, feed) in runners.items():
                begin = time.thread_time()
                runner.run(None, feed)
                best[kind] = min(best[kind], 1000 * (time.thread_time() - begin))
        ratios = {kind: round(best["float"] / best[kind], 3) for kind in KINDS if kind != "float"}
        rows.append({"shape": shape, "ms": {kind: round(value, 3) for kind, value in best.items()}, "faster": ratios})
    return rows


def product(shape: tuple[int, int, int], kind: str) -> tuple[Any, dict[str, Any]]:
    """A session that multiplies (rows, inner) by constant (inner, columns), and its input."""
    rows, inner, columns = shape
    left, right = KINDS[kind]
    random = np.random.default_rng(0)
    x, w = (random.integers(0, 100, size).astype(t) for size, t in (((rows, inner), left), ((inner, columns), right)))
    answer = TensorProto.FLOAT if kind == "float" else TensorProto.INT32
    node = helper.make_node("MatMul" if kind == "float" else "MatMulInteger", ["x", "w"], ["y"])
    ends = [("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape), ("y", answer, (rows, columns))]
    values = [helper.make_tensor_value_info(*end) for end in ends]
    graph = helper.make_graph([node], "product", values[:1], values[1:], [numpy_helper.from_array(w, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return session(model.SerializeToString()), {"x": x}


def network(name: str, folder: Path, methods: list[str]) -> dict[str, Any]:
    _, source = pruned(name, folder)
    feeds, held_out = random_feeds(source, 8), random_feeds(source, 4, seed=1)
    rows: dict[str, Any] = {}
    for method in methods:
        target = folder / f"{name}-int8-{method}.onnx"
        begin = time.perf_counter()
        result = quantize_int8(source, target, feeds, method=method)  # type: ignore[arg-type]
        found = compare(source, target, held_out)
        rows[method] = {
            "bytes": result.packing.bytes_after,
            "gzip_bytes": file_size(target).gzip_bytes,
            "unpacked_bytes": result.qdq_bytes,
            "bound_bytes": result.packing.bound_bytes,
            "folded": result.packing.folded,
            "int8_products": dict(result.fusion.int8),
            "float_products": dict(result.fusion.float),
            "output_rms_rel": found.rms_rel,
            "seconds": time.perf_counter() - begin,
        }
    target = folder / f"{name}-int8-{methods[0]}.onnx"
    plain = folder / f"{name}-int8-plain.onnx"
    unpack(target, plain)
    same = compare(plain, target, held_out)
    speed = compare_latency(source, target, threads=1, batch=1)
    return {
        "dense_bytes": source.stat().st_size,
        "methods": rows,
        "packed_equals_unpacked": same.identical,
        "latency": {
            "float_ms": speed.latencies[0].p50_ms,
            "int8_ms": speed.latencies[1].p50_ms,
            "ratio": speed.ratio,
            "ratio_low": speed.ratio_low,
            "ratio_high": speed.ratio_high,
            "trustworthy": speed.trustworthy,
            "reason": speed.reason,
        },
    }


if __name__ == "__main__":
    main()
