"""Which torchvision models lose half of their channels, in which tier, with which proofs, at what cost, to which ONNX.

    python benchmarks/channels_coverage.py [--minutes 14]           # all builders, small ones first; resumes
    python benchmarks/channels_coverage.py resnet18 vit_b_32        # these, again
    python benchmarks/channels_coverage.py --proofs                 # those that lack the newest proof; ONNX as recorded

For each builder, in a child forked from a process that has imported torch: random seeded weights of unit gain with
random vectors and statistics; mean squared slices over the group mean, half of all units, at least a tenth of each
group (specs/channels.md 5.1); the proofs; the cut model exported to ONNX and compared with PyTorch on two inputs of
batch 1 and 2 (where the file's batch is free). Images are as small as the network allows, since what goes together
does not depend on their size: MAC ratios are those at that size. Detectors are analysed through their backbone, FPN
and heads (`pruners.channels.detectors`) and exported in the form of their raw heads. Seconds are CPU seconds of one
thread on a shared machine; `extra_mib` is the peak over the memory before the analysis, the dense model included there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "channels_coverage.json"
sys.path.insert(0, str(ROOT))

NEWEST = "masked train forward"
"""The proof that rows of early runs lack."""
VIDEO = ("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")
DETECTORS = ("rcnn", "retinanet", "fcos", "ssd")
SIZES = {"inception": 299, "maxvit": 224, "raft": 128, "vit_h": 56, "s3d": 224, "mvit": 224}
FRAMES = {"s3d": 16, "mvit": 16, "swin3d": 4}
RTOL = 1e-3
"""Of the largest output, as specs/channels.md 3.1: deep networks with random weights round more than trained ones."""


def main() -> None:
    """Measure what is not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no builder after this time")
    parser.add_argument("--cpu-seconds", type=int, default=400, help="of one builder")
    parser.add_argument("--failed", action="store_true", help="measure the failed ones again")
    parser.add_argument("--proofs", action="store_true", help="cut and prove anew what lacks the newest proof")
    arguments = parser.parse_args()
    known = json.loads(RESULTS.read_text())["builders"] if RESULTS.exists() else {}
    begin = time.monotonic()
    for name in arguments.names or builders():
        recorded = known.get(name, {})
        done = name in known and not (arguments.failed and recorded.get("failed"))
        anew = arguments.proofs and "onnx" in recorded
        done = done and not (anew and all(proof["name"] != NEWEST for proof in recorded["proofs"]))
        if done and not arguments.names:
            continue
        if time.monotonic() - begin > 60 * arguments.minutes:
            break
        row = in_child(name, arguments.cpu_seconds, recorded if anew else None)
        known[name] = row if "failed" not in row or not anew else {**recorded, "failed_anew": row["failed"]}
        print(name, row.get("failed") or _line(row), flush=True)
        save(known)
    print(summary(known))


def _line(row: dict[str, Any]) -> str:
    onnx = row["onnx"]
    said = onnx.get("failed") or f"ONNX {onnx['max_rel']:.1e}"
    return f"tier {row['tier']} MACs x{row['macs_ratio']} {said} {row['cpu_s']['all']:.0f} s"


def builders() -> list[str]:
    """Every float builder of torchvision, small ones first."""
    from compress_cli.checkpoint.builder_index import builder_shapes, floating_builders

    def size(name: str) -> int:
        total = 0
        for shape in builder_shapes(name, {}).values():
            count = 1
            for number in shape:
                count *= number
            total += count
        return total

    return sorted(floating_builders(), key=lambda name: (size(name), name))


def in_child(name: str, cpu_seconds: int, recorded: dict[str, Any] | None) -> dict[str, Any]:
    """Measure one builder in a forked process with a limit on its CPU seconds; ONNX as `recorded`, if given."""
    with tempfile.TemporaryDirectory() as folder:
        found, begin = Path(folder) / "row.json", time.monotonic()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
                found.write_text(json.dumps(measure(name, Path(folder), recorded)))
                code = 0
            except Exception as error:
                found.write_text(json.dumps({"failed": f"{type(error).__name__}: {error}"[:500]}))
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == -signal.SIGXCPU:
            return {"failed": f"stopped after {cpu_seconds} CPU seconds"}
        if code:
            return {"failed": f"exit {code}"}
        row: dict[str, Any] = json.loads(found.read_text())
        return {**row, "wall_s": round(time.monotonic() - begin, 1)}


def measure(name: str, folder: Path, recorded: dict[str, Any] | None) -> dict[str, Any]:
    """Everything about one model, in this process."""
    import torch

    from pruners.channels import CostModel, Groups, analyse, fit, make_plan
    from pruners.channels.scores import ScoreOptions, score
    from pruners.channels.selection import SelectionOptions, select_share

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, inputs = model_and_inputs(name)
    clock = Clock()
    before = peak_mib()
    groups = analyse(model, inputs)
    clock("analysis")
    analysed = peak_mib()

    def choose(found: Groups) -> Any:
        scores = score(model, found, ScoreOptions())
        return make_plan(found, select_share(found, scores, 0.5, SelectionOptions(min_channels="10%")))

    fitted = fit(model, inputs, groups, choose)
    clock("cut_and_proof")
    cut = peak_mib()
    plan, cost = fitted.plan, CostModel(groups)
    onnx = exported(fitted.model, inputs, folder) if recorded is None else recorded["onnx"]
    clock("onnx")
    if recorded is not None and recorded["removed"] != plan.units_removed:
        raise RuntimeError(f"{plan.units_removed} units go now, {recorded['removed']} in the file that was compared")
    return {
        "tier": plan.tier,
        "why_not_lower": list(fitted.refused),
        "input": [list(x.shape) for x in _leaves(inputs)],
        "units": groups.units,
        "groups": len(groups.groups),
        "removed": plan.units_removed,
        "macs": cost.dense_macs,
        "macs_ratio": round(plan.macs_after / max(plan.macs_before, 1), 4),
        "params": cost.dense_params,
        "params_ratio": round(plan.params_after / plan.params_before, 4),
        "proofs": fitted.proof.to_dict()["checks"],
        "onnx": onnx,
        "not_zeroing": list(plan.not_zeroing),
        "notes": list(plan.warnings),
        "cpu_s": clock.seconds({} if recorded is None else {"onnx": recorded["cpu_s"]["onnx"]}),
        "extra_mib": {"analysis": analysed - before, "cut_and_proof": cut - before},
    }


def _leaves(inputs: tuple[Any, ...]) -> list[Any]:
    return [leaf for item in inputs for leaf in (item if isinstance(item, list) else [item]) if hasattr(leaf, "shape")]


class Clock:
    """CPU seconds of this process by part."""

    def __init__(self) -> None:
        self.begin = self.last = time.process_time()
        self.parts: dict[str, float] = {}

    def __call__(self, part: str) -> None:
        """Note the seconds since the last part."""
        now = time.process_time()
        self.parts[part] = round(now - self.last, 2)
        self.last = now

    def seconds(self, recorded: dict[str, float]) -> dict[str, float]:
        """All parts and their sum; parts that were recorded before replace those of now."""
        parts = {**self.parts, **recorded}
        return {**parts, "all": round(sum(parts.values()), 2)}


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def model_and_inputs(name: str) -> tuple[Any, tuple[Any, ...]]:
    """A seeded model and one example, as small as the network allows."""
    import torch
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if "deeplab" in name or "fcn" in name or "lraspp" in name or any(text in name for text in DETECTORS):
        options["weights_backbone"] = None
    size = next((size for key, size in SIZES.items() if name.startswith(key)), 64)
    if name.startswith("vit"):
        options["image_size"] = size
    detector = any(text in name for text in DETECTORS)
    if detector and not name.startswith("ssd"):
        options |= {"min_size": 128, "max_size": 160}
    with own_weights():
        model = torchvision.models.get_model(name, **options).eval()
    fill(model)
    generator = torch.Generator().manual_seed(1)
    if detector:
        return model, ([torch.rand(3, 128, 128, generator=generator)],)
    if name.startswith("raft"):
        pair = [torch.rand(1, 3, size, size, generator=generator) * 2 - 1 for _ in range(2)]
        return model, (*pair, 2)
    if name.startswith(VIDEO):
        frames = next((count for key, count in FRAMES.items() if name.startswith(key)), 8)
        return model, (torch.randn(1, 3, frames, size, size, generator=generator),)
    return model, (torch.randn(1, 3, size, size, generator=generator),)


def own_weights() -> Any:
    """Builders leave the weights alone: they are drawn afterwards (drawing them twice takes longer than a proof)."""
    from contextlib import ExitStack
    from unittest.mock import patch

    import torch

    def leave(tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    stack = ExitStack()
    for function in [item for item in dir(torch.nn.init) if item.endswith("_") and not item.startswith("_")]:
        stack.enter_context(patch.object(torch.nn.init, function, leave))
    return stack


def fill(model: Any) -> None:
    """Unit gain, random vectors and statistics: equal ones would hide swapped channels."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.uniform_(0.5, 1.5, generator=generator).mul_(0.5)
            else:
                parameter.normal_(0, max(parameter[0].numel(), 1) ** -0.5, generator=generator)
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
            elif key.endswith("running_mean"):
                buffer.uniform_(-0.5, 0.5, generator=generator)


def exported(model: Any, inputs: tuple[Any, ...], folder: Path) -> dict[str, Any]:
    """The cut model as ONNX beside PyTorch."""
    import torch

    from exporters.onnx_export import export
    from exporters.verify import verify
    from pruners.channels.detectors import traceable

    model, inputs = traceable(model.eval(), inputs)

    tensors = tuple(x for x in inputs if isinstance(x, torch.Tensor))
    if len(tensors) < len(inputs):
        model = WithConstants.around(model, inputs[len(tensors) :])
    names = [f"input{place}" for place in range(len(tensors))]
    try:
        file = folder / "cut.onnx"
        result = export(model, tensors, file, input_names=names)
        proof = verify(model, file, tensors, input_names=names, batches=(1, 2), seeds=(0, 1), rtol=RTOL)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}
    if not proof.ok:
        return {"failed": "; ".join(proof.warnings)[:300] or "outputs differ", "max_rel": proof.max_rel}
    return {
        "max_rel": float(f"{proof.max_rel:.2e}"),
        "compared": len(proof.agreements),
        "batches": sorted({item.batch for item in proof.agreements}),
        "dynamic_batch": result.dynamic_batch,
        "exporter": result.exporter,
        "bytes": result.file_bytes,
        "notes": [*result.notes, *proof.notes],
    }


class WithConstants:
    """Makes a module of tensors only out of one that also takes numbers."""

    @staticmethod
    def around(model: Any, constants: tuple[Any, ...]) -> Any:
        """The module with the constants as its last arguments."""
        import torch

        class Bound(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, *tensors: Any) -> Any:
                return self.inner(*tensors, *constants)

        return Bound().eval()


def summary(known: dict[str, Any]) -> dict[str, Any]:
    """Counts over the recorded builders."""
    good = {name: row for name, row in known.items() if not row.get("failed")}
    return {
        "builders": len(known),
        "cut_and_proved": len(good),
        "onnx_equal": sum("max_rel" in row["onnx"] and not row["onnx"].get("failed") for row in good.values()),
        "tiers": {str(tier): sum(row["tier"] == tier for row in good.values()) for tier in (1, 2, 3, 4)},
        "failed": {name: row["failed"] for name, row in known.items() if row.get("failed")},
        "onnx_failed": {name: row["onnx"]["failed"] for name, row in good.items() if row["onnx"].get("failed")},
    }


def save(known: dict[str, Any]) -> None:
    """Write the record with what it was made with."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime")}
    document = {"versions": versions, "summary": summary(known), "builders": dict(sorted(known.items()))}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def warm() -> None:
    """Import before forking, so that each child starts with everything loaded."""
    imports: tuple[Callable[[], Any], ...] = (
        lambda: __import__("torchvision"),
        lambda: __import__("exporters.onnx_export"),
        lambda: __import__("exporters.verify"),
        lambda: __import__("pruners.channels"),
        lambda: __import__("onnxscript"),
    )
    for load in imports:
        load()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warm()
    main()
