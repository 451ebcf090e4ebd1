"""Size, entropy bound, load time, memory while loading, latency and output error of every form of ONNX weights.

Networks: `packing_models.py`; `fc` is one layer of 411 MB (VGG's first linear layer), for memory only. Load time (wall
and the process's own CPU time, whose ratio neighbours do not distort) and peak memory come from fresh processes, one
thread, dense and packed in turns, the least of the repetitions. Latency is interleaved (`profilers.latency`), and
measured as processor time, which a busy machine hardly distorts. Output error is against the dense sparse file on
random images. The bound is the order-0 entropy of indices and codes, the other tensors as they are, and the network's
own nodes. Networks that the output file has already are kept.

    python benchmarks/packing_tiers.py --work /tmp/packing --output benchmarks/results/packing_tiers.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

TIERS = ("packed", "packed-fp16", "packed-q8", "packed-q6", "packed-cb6", "packed-cb4", "packed-cb3")
LATENCY = ("packed",)
LIMITS = {
    "resnet18": {"packed": 5.4, "packed-fp16": 3.0, "packed-q8": 1.85, "packed-cb4": 1.25},
    "resnet50": {"packed": 12.3, "packed-fp16": 6.8, "packed-q8": 4.2, "packed-cb4": 2.75},
    "mobilenet_v2": {"packed": 1.85, "packed-fp16": 1.07, "packed-q8": 0.72, "packed-cb4": 0.5},
}
"""MB that each form may take at most (issue 6)."""
NAMES = tuple(LIMITS)
GIANT = "fc"
GIANT_FORMS = ("packed", "packed-fp16", "packed-q8", "packed-cb4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/packing"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/packing_tiers.json"))
    parser.add_argument("--models", nargs="*", default=[*NAMES, GIANT], choices=[*NAMES, GIANT])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--forms", nargs="*", default=list(TIERS), choices=list(TIERS))
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(load(arguments.child)))
        return
    from packing_models import FLOOR, SPARSITY  # torch: not in the child

    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    document: dict[str, Any] = {
        "what": "ONNX files of networks with 90 % zeros by form of their weights",
        "sparsity": SPARSITY,
        "floor_per_tensor": FLOOR,
        "machine": {"processor": processor(), "system": platform.platform(), "threads": 1},
        "versions": {name: version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime", "numpy")},
        "networks": known.get("networks", {}),
    }
    for name in arguments.models:
        found = giant(arguments.work) if name == GIANT else network(name, arguments)
        document["networks"][name] = {**found, "load_average": os.getloadavg()[0]}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def network(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    from packing_models import pruned

    from exporters.packing import pack
    from profilers.size import file_size

    folder = arguments.work
    original, source = pruned(name, folder)
    paths = {"dense": source}
    rows: dict[str, Any] = {}
    for tier in arguments.forms:
        begin = time.perf_counter()
        paths[tier] = folder / f"{name}-{tier}.onnx"
        result = pack(source, paths[tier], tier=tier)
        rows[tier] = {
            "bytes": result.bytes_after,
            "gzip_bytes": file_size(paths[tier]).gzip_bytes,
            "bound_bytes": result.bound_bytes + result.graph_bytes,
            "graph_bytes": result.graph_bytes,
            "over_bound": result.bytes_after / (result.bound_bytes + result.graph_bytes) - 1,
            "limit_bytes": round(1e6 * LIMITS[name][tier]) if tier in LIMITS[name] else None,
            "folded": result.folded,
            "tensors": len(result.tensors),
            "decoders": len({t.block for t in result.tensors}),
            "pack_seconds": time.perf_counter() - begin,
            **difference(source, paths[tier]),
        }
    size = file_size(source)
    rows["dense"] = {"bytes": size.bytes, "gzip_bytes": size.gzip_bytes}
    for tier, cost in loads(paths, arguments.repeat).items():
        rows[tier] |= cost
    if "packed" in paths:
        rows["packed"]["processor_time"] = processor_time(source, paths["packed"])
    for tier in [] if arguments.no_latency else [tier for tier in LATENCY if tier in paths]:
        rows[tier]["latency"] = latency(source, paths[tier])
    return {"original_bytes": original.stat().st_size, "forms": {name: rows[name] for name in paths}}


def giant(folder: Path) -> dict[str, Any]:
    """Memory while loading a layer of 4,096 x 25,088 weights, 90 % of them zero, in every form."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    from exporters.packing import pack

    source, target = folder / "fc.onnx", folder / "fc-packed.onnx"
    random = np.random.default_rng(0)
    array = random.standard_normal((4096, 25088), dtype=np.float32)
    array[random.random(array.shape, dtype=np.float32) >= 0.1] = 0
    size = array.nbytes
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n]) for name, n in (("x", 25088), ("y", 4096))]
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    graph = helper.make_graph([node], "fc", ends[:1], ends[1:], [numpy_helper.from_array(array, "w")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), source)
    del array, graph
    forms: dict[str, Any] = {}
    for form in ("dense", *GIANT_FORMS):
        path = source if form == "dense" else target
        if form != "dense":
            pack(source, target, tier=form, check=False)
        cost = loads({"dense": path}, 1)["dense"]
        forms[form] = {"bytes": path.stat().st_size, "peak_over_dense": cost["load_peak_bytes"] / size, **cost}
    for path in (source, target):
        path.unlink()
    return {"original_bytes": size, "forms": forms}


def difference(source: Path, other: Path) -> dict[str, Any]:
    from exporters.feeds import compare, random_feeds

    found = compare(source, other, random_feeds(source, 4, batch=2))
    return {"output_rms_rel": found.rms_rel, "output_max_rel": found.max_rel, "identical": found.identical}


def latency(source: Path, other: Path) -> dict[str, Any]:
    from profilers.latency import compare

    found = compare(source, other, threads=1, batch=1)
    return {
        "dense_ms": found.latencies[0].p50_ms,
        "packed_ms": found.latencies[1].p50_ms,
        "ratio": found.ratio,
        "ratio_low": found.ratio_low,
        "ratio_high": found.ratio_high,
        "trustworthy": found.trustworthy,
    }


def processor_time(source: Path, other: Path, runs: int = 25) -> dict[str, float]:
    """Median processor milliseconds of a run of both files, in turns, one thread."""
    import numpy as np

    from exporters.feeds import open_session, random_feeds

    feed = random_feeds(source, 1)[0]
    sessions = [open_session(path) for path in (source, other)]
    seen: list[list[float]] = [[], []]
    for turn in range(runs):
        for number in (0, 1) if turn % 2 else (1, 0):
            begin = time.thread_time()
            sessions[number].run(None, feed)
            seen[number].append(1000 * (time.thread_time() - begin))
    dense, packed = (float(np.median(times[2:])) for times in seen)
    return {"dense_ms": dense, "packed_ms": packed, "ratio": packed / dense}


def loads(paths: dict[str, Path], repeat: int) -> dict[str, dict[str, float]]:
    """Load seconds and peak bytes, the least of fresh processes in turns."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in paths}
    for _ in range(repeat):
        for name, path in paths.items():
            command = [sys.executable, __file__, "--child", str(path)]
            seen[name].append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    best = {name: {key: min(row[key] for row in rows) for key in rows[0]} for name, rows in seen.items()}
    return {name: {**row, "load_ratio": row["load_cpu_s"] / best["dense"]["load_cpu_s"]} for name, row in best.items()}


def load(path: Path) -> dict[str, float]:
    """Open `path` in this process: seconds, and peak resident bytes over those before."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    before = _status("VmRSS")
    begin, own = time.perf_counter(), time.process_time()
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - own
    return {"load_s": seconds, "load_cpu_s": cpu, "load_peak_bytes": _status("VmHWM") - before}


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status (the peak there, unlike getrusage's, is not the parent process's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
