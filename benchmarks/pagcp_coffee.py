"""Three tasks on coffee leaves, pruned to 40 % of the MACs: uniform L1, the published search, and the default.

    OMP_NUM_THREADS=1 python benchmarks/pagcp_coffee.py FOLDER [--epochs 12] [--tune 3] [--baselines]

FOLDER holds the unpacked data set. Searches judge by the validation split; every figure reported is of the test
split, which decides nothing. The result file is written anew after every part, so a stopped run keeps what it has.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import time
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


def main() -> None:
    """Run every part and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--tune", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--baselines", action="store_true", help="also the smaller sibling and the shape from scratch")
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    os.environ["COFFEE_LEAVES"] = asked.folder
    bench = Bench(asked.epochs, asked.tune, asked.width, asked.result)
    bench.original()
    bench.methods()
    bench.constraint()
    bench.search_cost()
    if asked.baselines:
        bench.baselines()


class Bench:
    """One trained network and what is done to it."""

    def __init__(self, epochs: int, tune: int, width: int, result: Path) -> None:
        spec = importlib.util.spec_from_file_location("coffee", HERE / "examples" / "coffee_leaves.py")
        assert spec is not None
        assert spec.loader is not None
        self.coffee = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.coffee)
        self.tasks = self.coffee.tasks()
        self.epochs, self.tune, self.width, self.path = epochs, tune, width, result
        self.splits = {name: self.coffee.leaves(name) for name in ("train", "val", "test")}
        self.record: dict[str, Any] = {
            "images": {name: len(images) for name, (images, _) in self.splits.items()},
            "input": [3, self.coffee.HEIGHT, self.coffee.WIDTH],
            "epochs": epochs,
            "tune_epochs": tune,
            "width": width,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "note": "small images, short training, one seed: read orderings, not levels",
        }

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
        seconds = self.train(self.net, self.epochs, 0.05)
        self.example = (torch.zeros(1, *self.record["input"]),)
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

    def methods(self) -> None:
        """Each method at the same MACs: after re-estimation, and after the same tuning."""
        target = int(TARGET * CostModel(self.groups).macs)
        data = self.data()
        found: dict[str, Any] = {}
        self.record["at_40_percent"] = found
        for name, options in (
            ("uniform L1", None),
            ("published search (reference)", reference(target=target, rounds=20, probe=0, min_channels="1")),
            ("default (path)", PagcpOptions(target=target, probe=0.3)),
        ):
            begin = time.perf_counter()
            if options is None:
                chosen, row = uniform_l1(self.net, self.groups, target), {}
            else:
                result = plan(self.net, self.example, data, options, groups=self.groups)
                chosen, record = result.plan, result.record
                row = {"full_forwards": round(record.full_forwards, 2), "tries": record.calls}
                row["gradient_passes"] = record.gradient_passes
                if record.sensitivity:
                    row["sensitivity_forwards"] = round(record.sensitivity_forwards, 2)
                    self.record["sensitivity"] = [
                        {"group": s.group, "macs_saved": s.macs_saved, "rises": rounded(s.rises)}
                        for s in record.sensitivity
                    ]
            row["search_seconds"] = round(time.perf_counter() - begin, 1)
            small = copy.deepcopy(self.net)
            apply_(small, chosen)
            if name.startswith("default"):
                self.pruned = copy.deepcopy(small)
            row |= {"macs": chosen.macs_after, "params": chosen.params_after, "before": self.test(small)}
            reestimate_batchnorm_(small, TaskData(self.batches("train", 226), data.forward, data.losses))
            row["batch_norms"] = self.test(small)
            row["tune_seconds"] = round(self.train(small, self.tune, 0.02), 1)
            row["tuned"] = self.test(small)
            found[name] = row
            self.save()
        control = copy.deepcopy(self.net)
        self.train(control, self.tune, 0.02)
        found["unpruned, tuned as long"] = {"tuned": self.test(control)}
        self.save()

    def constraint(self) -> None:
        """Bounds asked on validation leaves, found on test leaves."""
        data, rows = self.data(), []
        before = self.test(self.net)
        for bound in (0.1, 0.3):
            options = PagcpOptions(max_rise=dict.fromkeys(data.floors, bound), probe=0)
            result = plan(self.net, self.example, data, options, groups=self.groups)
            small = copy.deepcopy(self.net)
            if result.plan.units_removed:
                apply_(small, result.plan)
                reestimate_batchnorm_(small, data)
            after = self.test(small)
            rows.append(
                {
                    "asked": bound,
                    "macs_share": round(result.plan.macs_after / result.plan.macs_before, 4),
                    "on_validation": rounded(result.record.check.rises),
                    "on_test": {
                        t: round((after[t]["loss"] + eps) / (before[t]["loss"] + eps) - 1, 4)
                        for t, eps in data.floors.items()
                    },
                    "backed_off": result.record.check.backed_off,
                    "full_forwards": round(result.record.full_forwards, 2),
                }
            )
        self.record["constraint"] = rows
        self.save()

    def search_cost(self) -> None:
        """The published scan with and without what makes it cheaper, on the same data and bounds."""
        data, rows, first = self.data(size=16), [], None
        common: dict[str, Any] = {"max_rise": dict.fromkeys(data.floors, 0.5), "first_rise": 0.05, "top": 1.0}
        for name, changes in (
            ("published: every candidate on all samples", {}),
            ("prefix cache", {"cache_bytes": 1 << 30}),
            ("prefix cache and sequential test, z = 3", {"cache_bytes": 1 << 30, "z": 3.0}),
        ):
            options = reference(**{**common, "probe": 0, **changes})
            begin = time.perf_counter()
            result = plan(self.net, self.example, data, options, groups=self.groups)
            decisions = [(s.what, s.removed) for s in result.record.steps]
            first = first or decisions
            rows.append(
                {
                    "search": name,
                    "full_forwards": round(result.record.full_forwards, 2),
                    "tries": result.record.calls,
                    "decided_early": result.record.early,
                    "same_decisions": decisions == first,
                    "search_seconds": round(result.record.seconds["search"], 1),
                    "all_seconds": round(time.perf_counter() - begin, 1),
                }
            )
        self.record["search_cost"] = rows
        self.save()

    def baselines(self) -> None:
        """The dense smaller sibling, and the pruned shape from scratch: trained as long as original and tuning."""
        target, found = int(TARGET * CostModel(self.groups).macs), {}
        for width in range(self.width - 1, 1, -1):
            torch.manual_seed(0)
            sibling = self.coffee.coffee_resnet(width)
            macs = CostModel(analyse(sibling, self.example)).macs
            if macs <= target:
                break
        self.train(sibling, self.epochs + self.tune, 0.05)
        found["dense smaller sibling"] = {"width": width, "macs": macs, "test": self.test(sibling)}
        scratch = copy.deepcopy(self.pruned)
        torch.manual_seed(0)
        for module in scratch.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.train(scratch, self.epochs + self.tune, 0.05)
        found["pruned shape from scratch"] = {"test": self.test(scratch)}
        self.record["baselines"] = found
        self.save()


def uniform_l1(net: nn.Module, groups: Groups, target: int) -> Any:
    """The same share of every group, least L1 first, as little as meets the target."""
    order = [scores.argsort(stable=True).tolist() for scores in l1_scores(net, groups)]
    for share in range(1, 100):
        counts = [min(int(share / 100 * group.units), group.units - 1) for group in groups.groups]
        made = make_plan(groups, {place: order[place][:count] for place, count in enumerate(counts)})
        if made.macs_after <= target:
            return made
    raise ValueError("the target is out of reach")


def rounded(values: Any) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


if __name__ == "__main__":
    main()
