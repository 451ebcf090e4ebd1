"""Three tasks on coffee leaves, pruned to 40 % of the MACs: uniform L1, the published search, and the default.

    OMP_NUM_THREADS=1 python benchmarks/pagcp_coffee.py FOLDER [--epochs 12] [--tune 3] [--baselines] [--minutes 13]

FOLDER holds the unpacked data set. Searches judge by the validation split; every figure reported is of the test
split, which decides nothing. The result file is written after every part, and trained networks are kept in --state: a
run that was stopped, or ended by --minutes, goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress_cli.tasks.task import mean_present
from exporters.outputs import evaluating
from pruners.channels import CostModel, Groups, analyse, apply_, make_plan
from pruners.pagcp import (
    PagcpOptions,
    TaskData,
    constant_floors,
    l1_scores,
    plan,
    reestimate_batchnorm_,
    reference,
)

RESULT = Path(__file__).parent / "results" / "pagcp_coffee.json"
HERE = Path(__file__).resolve().parent.parent
BATCH, TARGET = 64, 0.4
BOUNDS = (0.1, 0.3)
METHODS = ("uniform L1", "default (path)", "published search (reference)", "measured (path)")
SEARCHES: dict[str, dict[str, Any]] = {
    "published: every candidate on all samples": {},
    "cache of what a candidate does not reach": {"cache_bytes": 1 << 30},
    "the same cache and sequential test, z = 3": {"cache_bytes": 1 << 30, "z": 3.0},
}


def main() -> None:
    """Run every part and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--tune", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--baselines", action="store_true", help="also the smaller sibling and the shape from scratch")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no part after so many")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "compress-coffee")
    parser.add_argument("--restart", action="store_true", help="measure everything anew")
    asked = parser.parse_args()
    os.environ["COFFEE_LEAVES"] = asked.folder
    end = time.monotonic() + 60 * asked.minutes
    bench = Bench(asked)
    bench.original()
    parts: list[tuple[str, str, Callable[[], Any]]] = [
        ("search_cost", name, lambda n=name: bench.search_cost(n)) for name in SEARCHES
    ]
    parts += [("at_40_percent", name, lambda n=name: bench.method(n)) for name in METHODS]
    parts += [("at_40_percent", "unpruned, tuned as long", bench.control)]
    for bound in BOUNDS:
        parts += [
            ("constraint", f"{bound:.0%}", lambda b=bound: bench.constraint(b)),
            ("constraint", f"{bound:.0%}, measured", lambda b=bound: bench.constraint(b, measured=True)),
        ]
    if asked.baselines:
        parts += [
            ("baselines", "dense smaller sibling", bench.sibling),
            ("baselines", "pruned shape from scratch", bench.scratch),
        ]
    for section, name, measure in parts:
        rows = bench.record.setdefault(section, {})
        if name not in rows and time.monotonic() < end:
            rows[name] = measure()
            bench.save()
            print(section, name, json.dumps(rows[name])[:300], flush=True)


class Bench:
    """One trained network and what is done to it."""

    def __init__(self, asked: argparse.Namespace) -> None:
        spec = importlib.util.spec_from_file_location("coffee", HERE / "examples" / "coffee_leaves.py")
        assert spec is not None
        assert spec.loader is not None
        self.coffee = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.coffee)
        self.tasks = self.coffee.tasks()
        self.epochs, self.tune, self.width, self.path = asked.epochs, asked.tune, asked.width, asked.result
        self.splits = {name: self.coffee.leaves(name) for name in ("train", "val", "test")}
        head = {
            "images": {name: len(images) for name, (images, _) in self.splits.items()},
            "input": [3, self.coffee.HEIGHT, self.coffee.WIDTH],
            "epochs": asked.epochs,
            "tune_epochs": asked.tune,
            "width": asked.width,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "note": "small images, short training, one seed: read orderings, not levels",
        }
        self.state = asked.state / f"width{asked.width}-epochs{asked.epochs}"
        self.state.mkdir(parents=True, exist_ok=True)
        known = json.loads(self.path.read_text()) if self.path.exists() and not asked.restart else {}
        same = all(known.get(name) == value for name, value in head.items()) and self.trained.exists()
        self.record: dict[str, Any] = {**head, **(known if same else {})}

    @property
    def trained(self) -> Path:
        """Weights of the network that everything starts from."""
        return self.state / "original.pt"

    def save(self) -> None:
        """Write what there is."""
        self.path.write_text(json.dumps(self.record, indent=1) + "\n")

    def batches(self, split: str, size: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """A split in a fixed shuffled order."""
        images, targets = self.splits[split]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        return [(images[part], {n: v[part] for n, v in targets.items()}) for part in order.split(size)]

    def losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """Per-sample losses of every task."""
        return {task.name: task.losses(outputs, batch[1]) for task in self.tasks}

    def data(self, size: int = 58) -> TaskData:
        """The validation split as the searches take it."""
        data = TaskData(self.batches("val", size), lambda model, batch: model(batch[0]), self.losses)
        return TaskData(data.batches, data.forward, data.losses, constant_floors(data, self.net))

    def train(self, net: nn.Module, epochs: int, rate: float) -> float:
        """SGD, cosine, mirrored leaves; returns seconds."""
        begin = time.perf_counter()
        images, targets = self.splits["train"]
        generator = torch.Generator().manual_seed(1)
        optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, nesterov=True)
        steps = epochs * (len(images) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.2)
        net.train()
        for _ in range(epochs):
            for part in torch.randperm(len(images), generator=generator).split(BATCH):
                if len(part) < BATCH:
                    continue
                x, target = images[part], {name: values[part] for name, values in targets.items()}
                if torch.rand((), generator=generator) < 0.5:
                    x, target = x.flip(3), {**target, "mask": target["mask"].flip(2)}
                if torch.rand((), generator=generator) < 0.5:
                    x, target = x.flip(2), {**target, "mask": target["mask"].flip(1)}
                loss = torch.stack([mean_present(v) for v in self.losses(net(x), (x, target)).values()]).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        net.eval()
        return time.perf_counter() - begin

    def test(self, net: nn.Module) -> dict[str, dict[str, float]]:
        """Metric and mean loss of every task on the test split."""
        sums: dict[str, Tensor] = {}
        losses: dict[str, list[Tensor]] = {}
        with evaluating(net):
            for batch in self.batches("test", 79):
                outputs = net(batch[0])
                for task in self.tasks:
                    counts = task.count(outputs, batch[1])
                    sums[task.name] = sums[task.name] + counts if task.name in sums else counts
                    losses.setdefault(task.name, []).append(task.losses(outputs, batch[1]))
        return {
            task.name: {
                "metric": round(float(task.metric.value(sums[task.name])), 2),
                "loss": round(float(torch.cat(losses[task.name]).nanmean()), 4),
            }
            for task in self.tasks
        }

    def original(self) -> None:
        """Train the network that everything starts from."""
        torch.manual_seed(0)
        self.net = self.coffee.coffee_resnet(self.width)
        self.example = (torch.zeros(1, *self.record["input"]),)
        if "original" in self.record:
            self.net.load_state_dict(torch.load(self.trained, weights_only=True))
            self.net.eval()
            self.groups = analyse(self.net, self.example)
            return
        seconds = self.train(self.net, self.epochs, 0.05)
        torch.save(self.net.state_dict(), self.trained)
        self.groups = analyse(self.net, self.example)
        cost = CostModel(self.groups)
        self.record["original"] = {
            "macs": cost.macs,
            "params": cost.params,
            "groups": len(self.groups.groups),
            "train_seconds": round(seconds, 1),
            "test": self.test(self.net),
        }
        self.save()

    def method(self, name: str) -> dict[str, Any]:
        """One method at the MACs asked for: as cut, with re-estimated batch norms, and after the same tuning."""
        target = int(TARGET * CostModel(self.groups).macs)
        data, begin = self.data(), time.perf_counter()
        row: dict[str, Any] = {}
        if name == METHODS[0]:
            chosen = uniform_l1(self.net, self.groups, target)
        else:
            published = reference(target=target, rounds=20, probe=0, min_channels="1")
            options = PagcpOptions(target=target, probe=0.3, measured=name == METHODS[3])
            options = published if name == METHODS[2] else options
            result = plan(self.net, self.example, data, options, groups=self.groups)
            chosen, record = result.plan, result.record
            row = {"full_forwards": round(record.full_forwards, 2), "tries": record.calls}
            row["gradient_passes"] = record.gradient_passes
            if record.sensitivity and name == METHODS[1]:
                row["sensitivity_forwards"] = round(record.sensitivity_forwards, 2)
                self.record["sensitivity"] = [
                    {"group": s.group, "macs_saved": s.macs_saved, "rises": rounded(s.rises)}
                    for s in record.sensitivity
                ]
        row["search_seconds"] = round(time.perf_counter() - begin, 1)
        small = copy.deepcopy(self.net)
        apply_(small, chosen)
        if name == METHODS[1]:
            self.record["pruned_shape"] = {cut.name: list(cut.removed) for cut in chosen.groups if cut.removed}
        row |= {"macs": chosen.macs_after, "params": chosen.params_after, "before": self.test(small)}
        reestimate_batchnorm_(small, TaskData(self.batches("train", 226), data.forward, data.losses))
        row["batch_norms"] = self.test(small)
        row["tune_seconds"] = round(self.train(small, self.tune, 0.02), 1)
        row["tuned"] = self.test(small)
        return row

    def control(self) -> dict[str, Any]:
        """The unpruned network, trained on as long as the pruned ones are tuned."""
        net = copy.deepcopy(self.net)
        self.train(net, self.tune, 0.02)
        return {"tuned": self.test(net)}

    def constraint(self, bound: float, *, measured: bool = False) -> dict[str, Any]:
        """A bound asked on validation leaves, found on test leaves."""
        data, before = self.data(), self.test(self.net)
        options = PagcpOptions(max_rise=dict.fromkeys(data.floors, bound), probe=0, measured=measured)
        result = plan(self.net, self.example, data, options, groups=self.groups)
        small = copy.deepcopy(self.net)
        if result.plan.units_removed:
            apply_(small, result.plan)
            reestimate_batchnorm_(small, data)
        after = self.test(small)
        return {
            "asked": bound,
            "macs_share": round(result.plan.macs_after / result.plan.macs_before, 4),
            "on_validation": rounded(result.record.check.rises),
            "on_test": {
                t: round((after[t]["loss"] + eps) / (before[t]["loss"] + eps) - 1, 4) for t, eps in data.floors.items()
            },
            "backed_off": result.record.check.backed_off,
            "full_forwards": round(result.record.full_forwards, 2),
        }

    def search_cost(self, name: str) -> dict[str, Any]:
        """The published scan with and without what makes it cheaper, on the same data and bounds."""
        data = self.data(size=16)
        rises = dict.fromkeys(data.floors, 0.5)
        options = reference(max_rise=rises, first_rise=0.05, top=1.0, probe=0, **SEARCHES[name])
        begin = time.perf_counter()
        result = plan(self.net, self.example, data, options, groups=self.groups)
        decisions = [[step.what, step.removed] for step in result.record.steps]
        rows = self.record["search_cost"]
        first = next(iter(rows.values()), None)
        return {
            "full_forwards": round(result.record.full_forwards, 2),
            "times_fewer": round(first["full_forwards"] / result.record.full_forwards, 2) if first else 1.0,
            "tries": result.record.calls,
            "decided_early": result.record.early,
            "same_decisions": first is None or decisions == first["decisions"],
            "search_seconds": round(result.record.seconds["search"], 1),
            "all_seconds": round(time.perf_counter() - begin, 1),
            "decisions": decisions,
        }

    def sibling(self) -> dict[str, Any]:
        """The dense network of at most the target's MACs, trained as long as original and tuning."""
        target = int(TARGET * CostModel(self.groups).macs)
        for width in range(self.width - 1, 1, -1):
            torch.manual_seed(0)
            net = self.coffee.coffee_resnet(width)
            macs = CostModel(analyse(net, self.example)).macs
            if macs <= target:
                break
        self.train(net, self.epochs + self.tune, 0.05)
        return {"width": width, "macs": macs, "test": self.test(net)}

    def scratch(self) -> dict[str, Any]:
        """The default's pruned shape from new random weights, trained as long as original and tuning."""
        net = copy.deepcopy(self.net)
        apply_(net, make_plan(self.groups, self.record["pruned_shape"]))
        torch.manual_seed(0)
        for module in net.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.train(net, self.epochs + self.tune, 0.05)
        return {"test": self.test(net)}


def uniform_l1(net: nn.Module, groups: Groups, target: int) -> Any:
    """The same share of every group, least L1 first, as little as meets the target."""
    order = [scores.argsort(stable=True).tolist() for scores in l1_scores(net, groups)]
    low, high, found = 0, 99, None
    while high - low > 1:
        share = (low + high) // 2
        counts = [min(int(share / 100 * group.units), group.units - 1) for group in groups.groups]
        made = make_plan(groups, {place: order[place][:count] for place, count in enumerate(counts)})
        if made.macs_after <= target:
            high, found = share, made
        else:
            low = share
    if found is None:
        raise ValueError("the target is out of reach")
    return found


def rounded(values: Any) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


if __name__ == "__main__":
    main()
