"""The devices that latency can be predicted for: names, threads, classes, and the error of each in cross-validation."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profilers.devices.chips import FAMILIES, NAMES, clock_ghz, descriptors, family
from profilers.devices.features import MEMORY
from profilers.devices.table import Run, runs
from profilers.errors import ProfilingFailed

RELIABLE = 0.16  # in-sample median above this: the device does not follow the model


class UnknownDevice(ProfilingFailed):
    """No device of that name, or several.

    Attributes:
        close: names that were probably meant.
    """

    def __init__(self, reason: str, close: Sequence[str] = ()) -> None:
        super().__init__(reason)
        self.close = tuple(close)


@dataclass(frozen=True, slots=True)
class Device:
    """One device with a number of threads.

    Attributes:
        log_costs: log milliseconds per unit of each feature, (features,).
        errors: log(predicted / measured) of the networks of the table by name order, NaN where it lacks one.
        median_error, p90_error: absolute relative error on networks that were left out of the fit.
        interval: 10th and 90th percentile of log(predicted / measured) in its class.
        basis: what the errors were measured on.
        reliable: whether the device follows the model (in-sample median error at most 16 %, at most 8 threads).
    """

    key: str
    title: str
    chip: str
    family: str
    ghz: float
    threads: int
    log_costs: NDArray[np.float64]
    errors: NDArray[np.float64]
    median_error: float
    p90_error: float
    interval: tuple[float, float]
    basis: str
    reliable: bool

    def to_dict(self) -> dict[str, Any]:
        """All but the costs as JSON can hold them."""
        return {
            "device": self.key,
            "title": self.title,
            "chip": self.chip,
            "family": self.family,
            "ghz": self.ghz,
            "threads": self.threads,
            "median_error": self.median_error,
            "p90_error": self.p90_error,
            "basis": self.basis,
            "reliable": self.reliable,
        }


@cache
def devices() -> tuple[Device, ...]:
    """Every run of the table, by name and threads."""
    rows = {row["run"]: row for row in fitted()["runs"]}
    members = [run for run in runs() if run.number in rows]
    keys = _keys(members)
    return tuple(sorted((_device(run, keys[run.number], rows[run.number]) for run in members), key=_order))


def _plainest(found: Mapping[str, list[Device]]) -> list[Device] | None:
    """The device whose name says nothing that the others' do not say too (`...-overclocked`)."""
    words = {key: set(key.split("-")) for key in found}
    shortest = min(words, key=lambda key: len(words[key]))
    return found[shortest] if all(words[shortest] <= other for other in words.values()) else None


def find(name: str, threads: int | None = None) -> Device:
    """The device whose name has all words of `name`, or the description `core=...,clock=...` of another one.

    Args:
        name: such as `raspberry-pi-5` or `snapdragon 8 gen 2`; or `core=cortex-a76,clock=2.4,bandwidth=17` with the
            clock in GHz and the memory bandwidth in GB/s.
        threads: default: 1, or the nearest that was measured; never interpolated.

    Raises:
        UnknownDevice: none or several fit.
    """
    if "=" in name:
        return described(name, threads or 1)
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    found: dict[str, list[Device]] = {}
    for device in devices():
        if words and words <= set(device.key.split("-")):
            found.setdefault(device.key, []).append(device)
    exact = found.get("-".join(re.findall(r"[a-z0-9]+", name.lower())))
    if exact is None and len(found) > 1:
        exact = _plainest(found)
    if exact is None and len(found) > 1:
        raise UnknownDevice(f"{name!r} fits {len(found)} devices", sorted(found))
    if exact is None and not found:
        keys = sorted({device.key for device in devices()})
        close = difflib.get_close_matches(name.lower(), keys, 5, 0.3)
        raise UnknownDevice(f"no device is called {name!r}", close)
    choices = exact or next(iter(found.values()))
    have = {device.threads: device for device in choices}
    if threads is not None and threads not in have:
        counts = ", ".join(map(str, sorted(have)))
        raise UnknownDevice(f"{choices[0].key} was measured with {counts} threads, not with {threads}")
    return have[threads if threads is not None else min(have)]


def described(text: str, threads: int = 1) -> Device:
    """A device that is not in the table, placed by core family, clock and threads among those that are.

    Raises:
        UnknownDevice: the description cannot be read.
    """
    fields = dict(part.partition("=")[::2] for part in re.split(r"[,;]\s*", text.strip()))
    unknown = sorted(set(fields) - {"core", "cores", "clock", "bandwidth"})
    if unknown or "core" not in fields or "clock" not in fields:
        raise UnknownDevice(
            f"{text!r} is no description of a device: write core=FAMILY,clock=GHZ[,cores=N,bandwidth=GB/S]"
        )
    name = _family_of(fields["core"])
    try:
        ghz, count = float(fields["clock"]), int(fields.get("cores", threads))
        bandwidth = float(fields["bandwidth"]) if "bandwidth" in fields else None
    except ValueError as error:
        raise UnknownDevice(f"{text!r}: clock, cores and bandwidth are numbers") from error
    if not 0.05 <= ghz <= 10 or not 1 <= count <= 8 or (bandwidth is not None and bandwidth <= 0):
        raise UnknownDevice(f"{text!r}: the clock is in GHz (0.05 to 10), 1 to 8 cores, the bandwidth above 0")
    costs = descriptors(name, count, ghz) @ np.asarray(fitted()["prior"])
    if bandwidth is not None:  # megabytes per millisecond = GB/s: memory cannot be faster than the user says
        costs[MEMORY] = np.maximum(costs[MEMORY], -np.log(bandwidth))
    errors = fitted()["errors"]["devices_out"][thread_class(count)]
    return Device(
        key=text.strip(),
        title=f"{name}, {ghz:g} GHz, {count} core(s)",
        chip=name,
        family=name,
        ghz=ghz,
        threads=count,
        log_costs=costs,
        errors=np.full(len(fitted()["networks"]), np.nan),
        median_error=errors["median"],
        p90_error=errors["p90"],
        interval=(errors["log_quantiles"][1], errors["log_quantiles"][3]),
        basis=f"devices left out of the fit, {thread_class(count)}",
        reliable=False,
    )


def thread_class(threads: int) -> str:
    """The class whose errors are printed with a prediction."""
    if threads == 1:
        return "1 thread"
    return "2-4 threads" if threads <= 4 else "5-8 threads" if threads <= 8 else "more threads"


@cache
def fitted() -> Mapping[str, Any]:
    """The recorded fit (`benchmarks/devices_fit.py`)."""
    text = files("profilers.devices").joinpath("fitted.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _family_of(core: str) -> str:
    if core in NAMES:
        return core
    for name, pattern in FAMILIES.items():
        if re.search(pattern, core.lower()):
            return name
    raise UnknownDevice(f"no core family is called {core!r}", list(FAMILIES))


def _device(run: Run, key: str, row: Mapping[str, Any]) -> Device:
    label = thread_class(run.threads)
    quantiles = fitted()["errors"]["networks_out"][label]["log_quantiles"]
    return Device(
        key=key,
        title=run.title,
        chip=run.chip,
        family=family(run),
        ghz=clock_ghz(run),
        threads=run.threads,
        log_costs=np.asarray(row["log_costs"]),
        errors=np.asarray([np.nan if value is None else value for value in row["errors"]]),
        median_error=row["error"]["median"],
        p90_error=row["error"]["p90"],
        interval=(quantiles[1], quantiles[3]),
        basis="networks left out of the fit, on this device",
        reliable=row["in_sample"] <= RELIABLE and run.threads <= 8,
    )


def _keys(members: Sequence[Run]) -> dict[int, str]:
    """Unique names: where device, note and threads are equal, the chip's first words or the run number tell apart."""
    taken: dict[tuple[str, int], list[Run]] = {}
    for run in members:
        taken.setdefault((run.key, run.threads), []).append(run)
    keys: dict[int, str] = {}
    for (key, _), same in taken.items():
        chips = {run.chip for run in same}
        for run in same:
            extra = re.sub(r"[^a-z0-9]+", "-", " ".join(run.chip.lower().split()[:4])).strip("-")
            suffix = f"-{extra}" if len(chips) == len(same) else f"-run-{run.number}"
            keys[run.number] = key if len(same) == 1 else key + suffix
    return keys


def _order(device: Device) -> tuple[str, int]:
    return device.key, device.threads
