"""Prune the state dict of every torchvision builder with the command a user types, and record what failed.

For each builder: a state dict with seeded weights (no architecture inside) is written to a file, then
`compress prune FILE --sparsity 0.9 --no-bench --json` runs on it, in a child forked from a process that has imported
torch already (with `--cold` in a fresh process). Recorded: exit code, recognised architecture, zeros in the written
file against round(0.9 N), exporter, worst relative difference between ONNX Runtime and PyTorch, bytes, seconds.
With export, the report says whether the packed file was folded and equal to the dense one; the files of networks up to
15 M parameters are then expanded by `unpack`, and packed again without loss and with 4-bit codebooks: bytes
beside the entropy bound, whether ONNX Runtime folds the decoder away, whether the lossless file gives the plain one's
outputs bit for bit on two inputs (else the difference), whether `unpack` gives every tensor back bit for bit.

`--no-export` is much faster and proves recognition, loading and exact pruning only; a builder counts as exported when
it was run without it. Results are kept per builder, so that the script can be stopped and started again: small
networks come first, and a run with export replaces one without.

    python benchmarks/torchvision_corpus.py [--no-export] [--only 'resnet*'] [--work DIR] [--minutes N]
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "torchvision_corpus.json"
SPARSITY = "0.9"
ROUNDING = 1e-6
CHECKED_AGAIN = 60_000_000
"""Bytes of a checkpoint up to which the exported file is unpacked and packed again."""


def main() -> None:
    """Run the corpus and print what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="glob on the builder's name")
    parser.add_argument("--no-export", action="store_true", help="prune only")
    parser.add_argument("--cold", action="store_true", help="a fresh process for each builder")
    parser.add_argument("--work", type=Path, default=None, help="folder for the temporary files")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no builder after this time")
    parser.add_argument("--again", action="store_true", help="also repeat builders that are recorded already")
    options = parser.parse_args()
    recorded = json.loads(options.output.read_text())["builders"] if options.output.exists() else {}
    begin = time.monotonic()
    for name in builders(options.only):
        known = recorded.get(name)
        done = known is not None and (options.no_export or known["with_export"]) and not options.again
        if done:
            continue
        if time.monotonic() - begin > 60 * options.minutes:
            break
        recorded[name] = prune(name, options)
        save(options.output, recorded)
        result = recorded[name]
        print(f"{name:45} {'ok' if result['ok'] else 'FAILED ' + result['why']}  {result['seconds']:.0f} s", flush=True)
    for line in summary(recorded):
        print(line)


def builders(pattern: str) -> list[str]:
    """Names of torchvision builders, small ones first; quantised ones (same keys as their float twins) left out."""
    from compress_cli.checkpoint.builder_index import builder_shapes, floating_builders

    def size(name: str) -> int:
        shapes = builder_shapes(name, {}).values()
        return sum(_product(shape) for shape in shapes)

    return sorted(fnmatch.filter(floating_builders(), pattern), key=lambda name: (size(name), name))


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for number in shape:
        total *= number
    return total


def write_state_dict(name: str, file: Path) -> None:
    """Save seeded weights of unit gain, so that activations neither vanish nor explode in deep networks."""
    import torch
    import torchvision

    for function in [item for item in dir(torch.nn.init) if item.endswith("_") and not item.startswith("_")]:
        setattr(torch.nn.init, function, lambda tensor, *args, **kwargs: tensor)  # weights are drawn below
    names = inspect.signature(torchvision.models.get_model_builder(name)).parameters
    options = {"weights": None, **({"weights_backbone": None} if "weights_backbone" in names else {})}
    state = torchvision.models.get_model(name, **options).state_dict()
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        if key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim >= 2:
            value.normal_(0, max(value[0].numel(), 1) ** -0.5, generator=generator)
        elif key.endswith("weight"):
            value.normal_(1, 0.1, generator=generator)
        else:
            value.normal_(0, 0.02, generator=generator)
    torch.save(state, file)


def prune(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Write one state dict, prune it in a process of its own, and judge the report."""
    folder = Path(tempfile.mkdtemp(prefix="corpus-", dir=options.work))
    try:
        file = folder / f"{name}.pth"
        if in_child(lambda: write_state_dict(name, file), folder) != 0:
            return _failure("the state dict could not be written", options, 0.0)
        words = ["prune", str(file), "--sparsity", SPARSITY, "--no-bench", "-o", str(folder / "run"), "--json", "-q"]
        words += ["--no-export"] if options.no_export else []
        begin = time.monotonic()
        code = cold(words, folder) if options.cold else in_child(lambda: run_command(words), folder)
        row = judge(code, (folder / "stdout").read_text(), (folder / "stderr").read_text(), begin, options)
        small = row["ok"] and not options.no_export and row["bytes"]["original checkpoint"] < CHECKED_AGAIN
        return with_packing(row, folder) if small else row
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_command(words: list[str]) -> int:
    """The command line in this process."""
    from compress_cli.app import run

    return run(words)


def cold(words: list[str], folder: Path) -> int:
    """The command line in a fresh process."""
    with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
        command = [sys.executable, "-m", "compress_cli", *words]
        return subprocess.run(command, stdout=out, stderr=err, check=False).returncode


def in_child(task: Any, folder: Path) -> int:
    """Run a task in a forked child with its output in files; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            code = task() or 0
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _failure(why: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    return {"ok": False, "why": why, "with_export": not options.no_export, "seconds": round(seconds, 1)}


def judge(code: int, stdout: str, stderr: str, begin: float, options: argparse.Namespace) -> dict[str, Any]:
    """What the report says, and whether everything that was promised is there."""
    seconds = time.monotonic() - begin
    try:
        report = json.loads(stdout)
    except ValueError:
        return _failure(f"exit {code}, no JSON: {stderr[-200:]}", options, seconds)
    if code != 0:
        return _failure(f"exit {code}: {report.get('error', {}).get('message', '')[:300]}", options, seconds)
    achieved = report["achieved"][0]
    export = report["export"] or {}
    agreements = (report["verification"] or {}).get("agreements", [])
    result = {
        "ok": True,
        "why": "",
        "with_export": not options.no_export,
        "seconds": round(seconds, 1),
        "architecture": (report["checkpoint"].get("architecture") or {}).get("reference"),
        "zeros": achieved["count"],
        "asked": achieved["asked_count"],
        "ranked": achieved["out_of"],
        "macs": (report["complexity_after"] or {}).get("macs"),
        "exporter": export.get("exporter"),
        "packed": packed_row(report["packing"]),
        "worst_relative_difference": max((item["max_rel"] for item in agreements), default=None),
        "bytes": {artifact["role"]: artifact["bytes"] for artifact in report["artifacts"]},
        "warnings": report["warnings"],
        "stages": {key: round(value, 1) for key, value in report["seconds"].items()},
    }
    problems = list(problems_of(result, report["notes"]))
    return {**result, "ok": not problems, "why": "; ".join(problems)}


def packed_row(section: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the run itself found out about its packed file."""
    if section is None or section.get("packing") is None:
        return None
    found, packing = section["comparison"], section["packing"]
    return {name: found[name] for name in ("identical", "rms_rel")} | {
        name: packing.get(name) for name in ("folded", "bytes_after", "bound_bytes") if name in packing
    }


def with_packing(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The row with what packing of the exported file gave, in a process of its own."""
    found = folder / "packing.json"
    code = in_child(lambda: found.write_text(json.dumps(packing(folder / "run" / "model.onnx", folder))) and 0, folder)
    if code != 0:
        return {**row, "ok": False, "why": f"packing: exit {code}: {(folder / 'stderr').read_text()[-200:]}"}
    tiers = json.loads(found.read_text())
    problems = [f"{tier} not folded" for tier in ("packed", "packed-cb4") if not tiers[tier]["folded"]]
    rounded = (tiers["packed"]["rms_rel"] or 0.0) <= ROUNDING  # another order of the same additions
    problems += [] if tiers["packed"]["identical"] or rounded else ["packed: other outputs"]
    problems += [] if tiers["unpacked_equal"] else ["unpack: other tensors"]
    return {**row, "packing": tiers, "ok": not problems, "why": "; ".join(problems)}


def packing(shipped: Path, folder: Path) -> dict[str, Any]:
    """Expand the file, pack it again in two ways, compare."""
    from exporters.feeds import compare, random_feeds
    from exporters.packing import pack
    from exporters.unpacking import unpack

    plain, again = folder / "plain.onnx", folder / "again.onnx"
    unpack(shipped, plain)
    row: dict[str, Any] = {"dense_bytes": plain.stat().st_size}
    feeds = random_feeds(plain, 2)
    for tier in ("packed", "packed-cb4"):
        packed = folder / f"{tier}.onnx"
        result = pack(plain, packed, tier=tier)
        agreement = compare(plain, packed, feeds)
        row[tier] = {
            "bytes": result.bytes_after,
            "bound_bytes": result.bound_bytes,
            "folded": result.folded,
            "identical": agreement.identical or agreement.max_rel == 0.0,
            "rms_rel": agreement.rms_rel if agreement.rms_rel < float("inf") else None,
        }
    unpack(folder / "packed.onnx", again)
    return {**row, "unpacked_equal": tensors(again) == tensors(plain)}


def tensors(path: Path) -> dict[str, str]:
    """A hash of every initializer with at least 64 elements by name, negative zeros made positive."""
    from onnx import numpy_helper

    from exporters import files

    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in files.read(path).graph.initializer}
    return {
        name: hashlib.sha256((array + 0).tobytes()).hexdigest() for name, array in arrays.items() if array.size >= 64
    }


def problems_of(result: dict[str, Any], notes: list[str]) -> Any:
    """What is wrong with a run that ended well."""
    if result["zeros"] != result["asked"]:
        yield f"{result['zeros']} zeros instead of {result['asked']}"
    if result["with_export"] and result["exporter"] is None:
        yield "no ONNX file: " + "; ".join(notes)[:300]
    if result["architecture"] is None:
        yield "not recognised"


def summary(recorded: dict[str, Any]) -> list[str]:
    """Lines for people."""
    exported = [result for result in recorded.values() if result["with_export"]]
    failed = {name: result["why"] for name, result in recorded.items() if not result["ok"]}
    return [
        f"{sum(result['ok'] for result in recorded.values())} of {len(recorded)} builders pruned exactly",
        f"{sum(result['ok'] for result in exported)} of {len(exported)} run with export were exported and verified",
        *(f"  {name}: {why}" for name, why in sorted(failed.items())),
    ]


def save(path: Path, recorded: dict[str, Any]) -> None:
    """Write the record with the versions it was made with."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime")}
    document = {
        "command": f"compress prune FILE --sparsity {SPARSITY} --no-bench",
        "versions": {**versions, "python": platform.python_version(), "machine": platform.machine()},
        "summary": summary(recorded),
        "builders": dict(sorted(recorded.items())),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
