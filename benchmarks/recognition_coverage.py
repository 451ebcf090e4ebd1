"""Does every torchvision builder's state dict name its own architecture, and how fast?

For each builder (with its default and with 7 classes): write its state dict to a file, read it back, recognise it, and
compare. Tensors are expanded zeros, so that files stay small; shapes and names are the real ones. `cold` repeats some
builders in a fresh process after `import torch`, importing torchvision included. Seconds are CPU time of one thread.

Usage: python benchmarks/recognition_coverage.py [BUILDER ...]
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torchvision

from compress_cli.checkpoint import Architecture, build, load, read_tensors, recognise
from compress_cli.checkpoint.builder_index import floating_builders
from compress_cli.errors import CompressError

RESULT = Path(__file__).parent / "results" / "recognition.json"
COLD = ("resnet50", "vit_h_14", "efficientnet_v2_l", "swin_v2_b", "maskrcnn_resnet50_fpn_v2")


def write_state_dict(builder: str, args: dict[str, Any], file: Path) -> bool:
    """Save a builder's state dict (zeros that share one element); False when it does not take the arguments."""
    try:
        module = build(Architecture(f"torchvision:{builder}", tuple(args.items())), meta=True)
    except CompressError:
        return False
    state = module.state_dict()
    for name, tensor in state.items():
        state[name] = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    torch.save(state, file)
    return True


def check(builder: str, args: dict[str, Any], file: Path) -> dict[str, Any]:
    """Recognise one file and load it strictly into the recognised network."""
    tensors = read_tensors(file).tensors
    begin = time.process_time()
    found = recognise(tensors)
    seconds = time.process_time() - begin
    wanted = str(Architecture(f"torchvision:{builder}", tuple(args.items())))
    row = {
        "builder": builder,
        "args": args,
        "tensors": len(tensors),
        "recognised": str(found.architecture),
        "ambiguous_with": list(found.ambiguous_with),
        "right": str(found.architecture) == wanted,
        "right_or_twin": wanted in (str(found.architecture), *found.ambiguous_with),
        "seconds": round(seconds, 3),
    }
    begin = time.process_time()
    loaded = load(file)
    row["loads"] = loaded.module is not None and len(loaded.tensors) == len(tensors)
    row["load_seconds"] = round(time.process_time() - begin, 3)
    return row


def cold_seconds(file: Path) -> float:
    """Recognition in a new process, counted after `import torch`."""
    code = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "from compress_cli.checkpoint.reading import read_tensors\n"
        "tensors = read_tensors(sys.argv[1]).tensors\n"
        "begin = time.process_time()\n"
        "from compress_cli.checkpoint.recognition import recognise\n"
        "assert recognise(tensors).architecture\n"
        "print(time.process_time() - begin)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    return round(float(run.stdout), 3)


def main() -> None:
    torch.set_num_threads(1)
    builders = sys.argv[1:] or floating_builders()
    rows, cold = [], {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        for builder in builders:
            for args in ({}, {"num_classes": 7}):
                if write_state_dict(builder, args, file):
                    rows.append(check(builder, args, file))
                    print(rows[-1]["right"], rows[-1]["loads"], rows[-1]["seconds"], builder, args, file=sys.stderr)
                    if builder in COLD and not args:
                        cold[builder] = cold_seconds(file)
    document = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "machine": platform.machine(),
        "builders": len({row["builder"] for row in rows}),
        "cases": len(rows),
        "right": sum(row["right"] for row in rows),
        "right_or_twin": sum(row["right_or_twin"] for row in rows),
        "loads": sum(row["loads"] for row in rows),
        "slowest_seconds": max(row["seconds"] for row in rows),
        "cold_seconds_after_import_torch": cold,
        "wrong": [row for row in rows if not row["right"]],
        "rows": rows,
    }
    if sys.argv[1:]:
        print(json.dumps(document, indent=1))
        return
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print({name: value for name, value in document.items() if name not in ("rows", "wrong")})


if __name__ == "__main__":
    main()
