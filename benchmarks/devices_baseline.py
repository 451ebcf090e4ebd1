"""The three-parameter roofline of the specification under the same cross-validation as our model, on the same runs.

    python benchmarks/devices_baseline.py [--runs 60]

One network at a time is left out of the fit and predicted. The fit minimises the same sum of absolute log errors as the
specification's, by gradient descent from its middle start. Writes `results/devices_baseline.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from devices_fit import summary

from profilers.devices.catalog import fitted
from profilers.devices.features import LayerRow
from profilers.devices.table import networks, runs

RESULTS = Path(__file__).resolve().parent / "results"


def work(layer: LayerRow) -> float:
    """m_l of the specification (mobile.md, section 4), in MMAC."""
    if not layer.macs:
        return 0.0
    winograd = (layer.kernel, layer.stride, layer.groups) == (3, 1, 1) and layer.in_channels >= 8
    depthwise = 1 < layer.groups == layer.out_channels
    smallest = min(layer.in_channels, layer.out_channels) if layer.in_channels else 64
    penalty = 3.0 if depthwise else 1 + 4 / smallest
    return 1e-6 * layer.macs * (0.45 if winograd else 1.0) * penalty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = sorted(networks())
    ours = {row["run"]: row["error"] for row in fitted()["runs"]}
    usable = [run for run in runs() if run.threads <= 8 and len(set(run.times) & set(names)) >= 18]
    picked = sorted(np.random.default_rng(0).choice(len(usable), min(arguments.runs, len(usable)), replace=False))
    members = [usable[index] for index in picked]
    rows = [(index, layer) for index, name in enumerate(names) for layer in networks()[name] if layer.type != "Split"]
    owner = torch.tensor([index for index, _ in rows])
    macs = torch.tensor([work(layer) for _, layer in rows], dtype=torch.float32)
    size = [4e-6 * (layer.in_elements + layer.out_elements + layer.weights) for _, layer in rows]
    megabytes = torch.tensor(size, dtype=torch.float32)
    times = np.asarray([[run.times.get(name, np.nan) for name in names] for run in members])
    total = torch.zeros(len(names)).index_add(0, owner, macs).numpy()
    errors = np.full_like(times, np.nan)
    for held in range(len(names)):
        kept = times.copy()
        kept[:, held] = np.nan
        mask = torch.tensor(~np.isnan(kept), dtype=torch.float32)
        target = torch.tensor(np.log(np.nan_to_num(kept, nan=1.0)), dtype=torch.float32)
        speed = np.nanmedian(total[None] / kept, axis=1)
        start = np.log(np.stack([1.5 * speed, 2 * speed, np.nanmin(kept, axis=1) / 3000], axis=1))
        p = torch.tensor(start, dtype=torch.float32).requires_grad_()
        optimizer = torch.optim.Adam([p], lr=0.08)
        for step in range(arguments.steps):
            optimizer.zero_grad()
            predicted = logs(p, owner, macs, megabytes, len(names))
            ((predicted - target).abs() * mask).sum().backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.08 * (1 - step / arguments.steps) + 1e-3
        errors[:, held] = (logs(p, owner, macs, megabytes, len(names)).detach().numpy() - np.log(times))[:, held]
        print(names[held], summary(errors[:, held]), flush=True)
    per_run = [summary(row) for row in errors]
    document = {
        "what": __doc__.splitlines()[0],
        "runs": [run.number for run in members],
        "roofline": summary(errors),
        "roofline_one_thread": summary(errors[[run.threads == 1 for run in members]]),
        "median_of_run_medians": {
            "roofline": round(float(np.median([row["median"] for row in per_run])), 4),
            "ours": round(float(np.median([ours[run.number]["median"] for run in members])), 4),
        },
        "median_of_run_p90": {
            "roofline": round(float(np.median([row["p90"] for row in per_run])), 4),
            "ours": round(float(np.median([ours[run.number]["p90"] for run in members])), 4),
        },
    }
    (RESULTS / "devices_baseline.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


def logs(p: torch.Tensor, owner: torch.Tensor, macs: torch.Tensor, megabytes: torch.Tensor, count: int) -> torch.Tensor:
    """Log milliseconds, (runs, networks), of p = ln(P in MMAC/ms, B in MB/ms, o in ms), (runs, 3)."""
    layers = torch.maximum(macs * torch.exp(-p[:, :1]), megabytes * torch.exp(-p[:, 1:2])) + torch.exp(p[:, 2:])
    return torch.log(torch.zeros(len(p), count).index_add(1, owner, layers))


if __name__ == "__main__":
    main()
