"""Static int8 with packed weights: bytes, fusion, output error and speed against the float file, interleaved.

    python benchmarks/int8_speed.py --work /tmp/packing --output benchmarks/results/int8_speed.json

Calibration and comparison use random images: sizes and speed do not depend on them; accuracy is in tiers_cifar.json.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packing_models import NAMES, pruned
from packing_tiers import processor

from exporters.feeds import compare, random_feeds
from exporters.int8 import METHODS, has_vnni, quantize_int8
from exporters.packing import unpack
from profilers.latency import compare as compare_latency
from profilers.size import file_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/packing"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/int8_speed.json"))
    parser.add_argument("--models", nargs="*", default=["resnet18", "mobilenet_v2"], choices=list(NAMES))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "what": "static int8 (U8S8, per channel, packed) of networks with 90 % zeros",
        "machine": {"processor": processor(), "vnni": has_vnni(), "threads": 1},
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxruntime")},
        "networks": {name: network(name, arguments.work, arguments.methods) for name in arguments.models},
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


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
