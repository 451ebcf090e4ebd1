"""Recovery of a network with three tasks at 60 % of its MACs, task by task, from unlabelled training images.

    OMP_NUM_THREADS=1 python -m benchmarks.recovery_coffee FOLDER [--width 10] [--epochs 10]

FOLDER is the unpacked data set. The trained network is the one that `pagcp_coffee.py` keeps in its --state. Channels go
by group magnitude, and by what they cost after recovery; nothing is trained. Figures are of the test split.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pagcp_coffee import Bench
from compress_cli.recovery import recover
from compress_cli.recovery.channel_prices import channel_prices
from profilers.machine import describe
from pruners import channels
from pruners.batchnorm import reestimate_

RESULTS = Path(__file__).parent / "results" / "recovery_coffee.json"
SHARE = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "compress-coffee")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bench = trained(asked)
    inputs = [batch[0] for batch in bench.batches("train", 64)]
    dense = channels.CostModel(bench.groups)
    document: dict[str, Any] = {
        "script": "benchmarks/recovery_coffee.py",
        "machine": describe(),
        "width": asked.width,
        "epochs": asked.epochs,
        "images": sum(map(len, inputs)),
        "macs": dense.macs,
        "dense": bench.test(bench.net),
        "rows": {},
    }
    for name in ("magnitude", "recovery"):
        document["rows"][name] = measured(bench, inputs, name, int(SHARE * dense.macs))
        print(name, json.dumps(document["rows"][name]), flush=True)
        RESULTS.write_text(json.dumps(document, indent=1) + "\n")


def trained(asked: argparse.Namespace) -> Bench:
    """The other benchmark's network and splits; it must have trained it."""
    os.environ["COFFEE_LEAVES"] = asked.folder
    asked.tune, asked.result, asked.restart = 0, RESULTS, True
    bench = Bench(asked)
    if not bench.trained.exists():
        raise SystemExit(f"{bench.trained} is not there: run benchmarks/pagcp_coffee.py first")
    bench.net = bench.coffee.coffee_resnet(asked.width)
    bench.net.load_state_dict(torch.load(bench.trained, weights_only=True))
    bench.net.eval()
    bench.example = (torch.zeros(1, *bench.record["input"]),)
    bench.groups = channels.analyse(bench.net, bench.example)
    return bench


def measured(bench: Bench, inputs: list[torch.Tensor], name: str, macs: int) -> dict[str, Any]:
    """As cut, with re-estimated batch norms, and recovered."""

    def choose(groups: channels.Groups) -> channels.ChannelsPlan:
        scores = channel_prices(bench.net, inputs, groups) if name == "recovery" else channels.score(bench.net, groups)
        return channels.plan(groups, scores, channels.Budget(macs=macs))

    fitted = channels.fit(bench.net, bench.example, bench.groups, choose)
    row: dict[str, Any] = {"macs": fitted.plan.macs_after, "cut": bench.test(fitted.model)}
    norms = copy.deepcopy(fitted.model)
    reestimate_(norms, [(batch,) for batch in inputs])
    row["batch_norms"] = bench.test(norms)
    begin = time.process_time()
    record = recover(bench.net, fitted.model, inputs, correspondence=fitted.plan)
    row |= {"cpu_seconds": round(time.process_time() - begin, 1), "chosen": record.chosen}
    return {**row, "recovered": bench.test(fitted.model)}


if __name__ == "__main__":
    main()
