"""Numbers with units, as people type and read them: budgets such as `8MB`, `20ms`, `1.5GMACs`, `60%`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import isfinite

from compress_cli.errors import UsageError

UNITS: dict[str, dict[str, Decimal]] = {
    "bytes": {
        "b": Decimal(1),
        "kb": Decimal(10**3),
        "mb": Decimal(10**6),
        "gb": Decimal(10**9),
        "kib": Decimal(2**10),
        "mib": Decimal(2**20),
        "gib": Decimal(2**30),
    },
    "ms": {"us": Decimal("0.001"), "ms": Decimal(1), "s": Decimal(1000)},
    "points": {"": Decimal(1)},
    "params": {"": Decimal(1), "k": Decimal(10**3), "m": Decimal(10**6), "g": Decimal(10**9)},
    "macs": {
        f"{letter}{unit}": Decimal(10**power) / per_mac
        for letter, power in (("", 0), ("k", 3), ("m", 6), ("g", 9), ("t", 12))
        for unit, per_mac in (("macs", 1), ("flops", 2))
    },
}
"""kind of quantity -> accepted unit (lower case) -> factor to the kind's base unit; FLOPs = 2 x MACs."""

EXAMPLES = {
    "bytes": "8MB or 25%",
    "ms": "20ms or 110%",
    "points": "0.5",
    "params": "5M or 50%",
    "macs": "1.5GMACs, 3GFLOPs or 50%",
}

LIMIT_KINDS = {
    "max-params": "params",
    "max-flops": "macs",
    "max-size": "bytes",
    "max-drop": "points",
    "max-latency": "ms",
}
"""Limit (flag and gate name) -> kind of quantity."""


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper limit from a `--max-*` flag: `value` in base units of `kind`, or a share of the original's value.

    `target`: the device that a latency is predicted for; "" for one measured on this machine.
    """

    name: str
    kind: str
    value: float
    relative: bool
    text: str
    target: str = ""

    def bound(self, original: float | None) -> float | None:
        """The limit in base units; None for a relative limit whose original was not measured."""
        if not self.relative:
            return self.value
        if original is None or not isfinite(original):
            return original
        # `value` is the float nearest to a short decimal: 57 % of 100 is 57, not 56.99999999999999
        exact = Fraction(repr(self.value)) * Fraction(original)
        return int(exact) if exact.denominator == 1 else float(exact)


def parse_limit(name: str, kind: str, text: str) -> Limit:
    """Read a limit such as `8MB` (absolute) or `25%` (of the original); latencies also as `TARGET=LIMIT`.

    Raises:
        UsageError: not a number with a unit of this kind, or not above zero.
    """
    whole, target = text, ""
    if kind == "ms" and "=" in text:
        target, _, text = text.rpartition("=")
        target = _latency_target(name, target.strip())
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zA-Z%]*)\s*", text)
    value = _decimal(match.group(1)) if match else None
    unit = match.group(2).lower() if match else ""
    known = UNITS[kind] | ({"%": Decimal("0.01")} if kind != "points" else {})
    if value is None or not 0 <= value < 10**18 or unit not in known:
        raise UsageError(f"{name} {text!r} is not a limit", f"write {name} as a number with its unit: {EXAMPLES[kind]}")
    if kind in ("params", "macs", "bytes") and unit != "%" and 0 < value * known[unit] < 1:
        raise UsageError(
            f"{name} {text!r} is less than one", f"for a share of the original write {name} {float(100 * value):g}%"
        )
    return Limit(name, kind, float(value * known[unit]), unit == "%", whole, target)


def _latency_target(name: str, target: str) -> str:
    """ "" for this machine, or a device that is predicted, as `mobile:DEVICE`."""
    kind, _, device = target.partition(":")
    if kind in ("mobile", "model") and device:
        return f"mobile:{device}"
    if target in ("cloud-cpu", "local"):
        return ""
    raise UsageError(
        f"{name} is for this machine or a predicted device, not for {target!r}",
        f"write {name} 20ms, or {name} mobile:DEVICE=80% (compress devices lists them)",
    )


def _decimal(text: str) -> Decimal | None:
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of 1000: `3.55 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"


def format_count(count: float) -> str:
    """A large count for people: `25.56 M`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f}"
