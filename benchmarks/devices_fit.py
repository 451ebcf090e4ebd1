"""Fit the device model, cross-validate it, and write what predictions need.

    python benchmarks/devices_fit.py            # about 2 minutes of CPU time; writes both files below

profilers/devices/fitted.json: costs of every run, the prior for devices that are not in the table, errors.
benchmarks/results/devices.json: all errors of the cross-validation, for `devices_plot.py` and the tables in the README.

Networks out: one network at a time is removed from all runs before fitting, then predicted on all of them. Devices
out: all runs of a device are removed (a twelfth of the devices at a time); it is predicted from its family, clock and
threads alone. Pairs: both networks of a pair are removed, and the ratio of their times is predicted.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from profilers.devices.chips import clock_ghz, descriptors, family
from profilers.devices.correction import correction, signature
from profilers.devices.features import FEATURES, network_features
from profilers.devices.fitting import Fit, fit, log_times
from profilers.devices.table import Run, networks, runs

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [
    ("resnet18", "resnet50"),
    ("mobilenet", "mobilenet_v2"),
    ("mobilenet_v2", "mobilenet_v3"),
    ("efficientnet_b0", "efficientnetv2_b0"),
    ("shufflenet", "shufflenet_v2"),
    ("squeezenet", "squeezenet_ssd"),
    ("mobilenet", "mobilenet_ssd"),
    ("mobilenet_v2", "mobilenetv2_yolov3"),
    ("yolo-fastest-1.1", "yolo-fastestv2"),
    ("mnasnet", "proxylessnasnet"),
]
DEVICE_FOLDS = 12
CLASSES = ("1 thread", "2-4 threads", "5-8 threads", "more threads")


def thread_class(threads: int) -> str:
    return CLASSES[0 if threads == 1 else 1 if threads <= 4 else 2 if threads <= 8 else 3]


class Table:
    """The runs of one group as arrays."""

    def __init__(self, members: list[Run], steps: int) -> None:
        self.runs = members
        self.steps = steps
        self.names = sorted(networks())
        self.features = np.stack([network_features(networks()[name]) for name in self.names])
        self.times = np.asarray([[run.times.get(name, np.nan) for name in self.names] for run in members])
        self.x = np.stack([descriptors(family(run), run.threads, clock_ghz(run)) for run in members])
        self.log = np.log(self.times)

    def full(self) -> Fit:
        """The fit with everything in it."""
        return fit(self.features, self.times, self.x, steps=self.steps)

    def without_networks(self, held: list[str]) -> np.ndarray:
        """Log prediction / measurement of the held networks on all runs; the correction does not see them either."""
        columns = [self.names.index(name) for name in held]
        times = self.times.copy()
        times[:, columns] = np.nan
        found = fit(self.features, times, self.x, steps=self.steps)
        return log_times(found.costs, self.features[columns]) - self.log[:, columns] - self.corrections(found, columns)

    def corrections(self, found: Fit, columns: list[int]) -> np.ndarray:
        """Expected log errors (runs, columns) from those of the networks that are not among `columns`."""
        signatures = signature(self.features, found.costs.mean(axis=0))
        errors = log_times(found.costs, self.features) - self.log
        errors[:, columns] = np.nan
        return np.asarray([[correction(signatures[place], signatures, row) for place in columns] for row in errors])

    def without_devices(self, names: set[str]) -> tuple[list[int], np.ndarray]:
        """(rows of the devices, log prediction / measurement of all networks on them)."""
        held = [index for index, run in enumerate(self.runs) if run.device in names]
        rest = [index for index in range(len(self.runs)) if index not in held]
        found = fit(self.features, self.times[rest], self.x[rest], steps=self.steps)
        return held, log_times(found.of(self.x[held]), self.features) - self.log[held]


def summary(errors: np.ndarray) -> dict[str, float]:
    known = errors[~np.isnan(errors)]
    share = np.abs(np.exp(known) - 1)
    quantiles = np.quantile(known, (0.05, 0.1, 0.5, 0.9, 0.95))
    return {
        "count": len(known),
        "median": round(float(np.median(share)), 4),
        "p90": round(float(np.quantile(share, 0.9)), 4),
        "within_20": round(float(np.mean(share < 0.2)), 4),
        "log_quantiles": [round(float(value), 4) for value in quantiles],
    }


def by_class(members: list[Run], errors: np.ndarray) -> dict[str, dict[str, float]]:
    labels = np.asarray([thread_class(run.threads) for run in members])
    found = {name: summary(errors[labels == name]) for name in CLASSES if (labels == name).any()}
    eight = labels != CLASSES[3]
    return {**found, **({"up to 8 threads": summary(errors[eight])} if eight.any() else {})}


def by_family(members: list[Run], errors: np.ndarray) -> dict[str, dict[str, float]]:
    labels = np.asarray([family(run) for run in members])
    return {name: summary(errors[labels == name]) for name in sorted(set(labels))}


def cross_validate(table: Table, label: str) -> dict:
    networks_out = np.full_like(table.times, np.nan)
    for index, name in enumerate(table.names):
        networks_out[:, [index]] = table.without_networks([name])
        print(label, name, summary(networks_out[:, index]), flush=True)
    devices_out = np.full_like(table.times, np.nan)
    names = sorted({run.device for run in table.runs})
    for fold in range(DEVICE_FOLDS):
        held, errors = table.without_devices(set(names[fold::DEVICE_FOLDS]))
        if held:
            devices_out[held] = errors
    print(label, "devices out", summary(devices_out), flush=True)
    return {"networks_out": networks_out, "devices_out": devices_out}


def pairs(table: Table) -> dict:
    found, everything = {}, []
    for first, second in PAIRS:
        errors = table.without_networks([first, second])
        ratio = errors[:, 1] - errors[:, 0]
        everything.append(ratio)
        found[f"{second} / {first}"] = summary(ratio)
        print("pair", first, second, found[f"{second} / {first}"], flush=True)
    return {"pairs": found, "all": summary(np.concatenate(everything))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    begin = time.time()
    known = set(networks())
    usable = [run for run in runs() if len(known & set(run.times)) >= 8]
    groups = {
        "up to 8 threads": Table([run for run in usable if run.threads <= 8], steps),
        "more": Table([run for run in usable if run.threads > 8], steps),
    }
    rows, errors, document = [], {"networks_out": [], "devices_out": [], "in_sample": []}, {"groups": {}}
    for label, table in groups.items():
        found = table.full()
        in_sample = log_times(found.costs, table.features) - table.log
        cv = cross_validate(table, label)
        for name, values in {**cv, "in_sample": in_sample}.items():
            errors[name].append(values)
        for index, run in enumerate(table.runs):
            rows.append(
                {
                    "run": run.number,
                    "log_costs": [round(float(value), 4) for value in found.costs[index]],
                    "in_sample": summary(in_sample[index])["median"],
                    "error": summary(cv["networks_out"][index]),
                    "errors": [None if np.isnan(value) else round(float(value), 3) for value in in_sample[index]],
                }
            )
        document["groups"][label] = {
            "weights": [[round(float(v), 4) for v in row] for row in found.weights],
            "runs": len(table.runs),
        }
        if label == "up to 8 threads":
            ratios = pairs(table)
            mean_costs = np.round(found.costs.mean(axis=0), 4)
            signatures = signature(table.features, mean_costs)
    members = [run for table in groups.values() for run in table.runs]
    errors = {name: np.concatenate(values) for name, values in errors.items()}
    statistics = {name: {**by_class(members, values), "all": summary(values)} for name, values in errors.items()}
    fitted = {
        "features": list(FEATURES),
        "networks": groups["more"].names,
        "mean_costs": mean_costs.tolist(),
        "signatures": np.round(signatures, 4).tolist(),
        "runs": sorted(rows, key=lambda row: row["run"]),
        "prior": document["groups"]["up to 8 threads"]["weights"],
        "errors": statistics,
        "ratio_errors": ratios["all"],
    }
    path = ROOT / "profilers" / "devices" / "fitted.json"
    path.write_text(json.dumps(fitted, separators=(",", ":")) + "\n", encoding="utf-8")
    results = {
        "what": "cross-validation of the device model; errors are log(predicted / measured)",
        "seconds": round(time.time() - begin),
        "steps": steps,
        "runs": len(members),
        "devices": len({run.device for run in members}),
        "statistics": statistics,
        "families_networks_out": by_family(members, errors["networks_out"]),
        "families_devices_out": by_family(members, errors["devices_out"]),
        "networks": {
            name: summary(errors["networks_out"][:, index]) for index, name in enumerate(groups["more"].names)
        },
        "ratios": ratios,
        "curves": {name: curve(values, members) for name, values in errors.items()},
    }
    (ROOT / "benchmarks" / "results" / "devices.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    print(json.dumps(statistics, indent=1))


def curve(errors: np.ndarray, members: list[Run]) -> dict[str, list[float]]:
    """Absolute relative error at every 2 % of the cases, by class of threads."""
    labels = np.asarray([thread_class(run.threads) for run in members])
    found = {}
    for name in CLASSES:
        values = errors[labels == name]
        share = np.abs(np.exp(values[~np.isnan(values)]) - 1)
        found[name] = [round(float(value), 4) for value in np.quantile(share, np.linspace(0, 1, 51))]
    return found


if __name__ == "__main__":
    main()
