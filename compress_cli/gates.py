"""Gates: limits from `--max-*` flags or a `gates` table against what was measured.

A limit that could not be checked never looks like a pass. Latency is noisy, so its gate only fails a run when the
whole interval of the measured ratio lies above the limit; within the interval it warns (style.md section 6).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from compress_cli.errors import UsageError
from compress_cli.quantities import LIMIT_KINDS, Limit, parse_limit
from compress_cli.report import Gate, RunReport

Level = Literal["off", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit, how serious it is, and what the team wants to be told when it fails.

    `level` None: error, but for latency warn unless the measured interval excludes the limit.
    """

    limit: Limit
    level: Level | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A measured quantity in base units: the original's, the compressed one's, and the low end of the latter."""

    original: float | None = None
    value: float | None = None
    low: float | None = None


def with_gates(report: RunReport, limits: Iterable[Limit]) -> RunReport:
    """The same report with one gate per limit."""
    found = measured(report)
    gates = (judge(Rule(limit), predicted_found(report.predictions, limit) or found[limit.name]) for limit in limits)
    return dataclasses.replace(report, gates=tuple(gates))


def judge(rule: Rule, found: Found) -> Gate:
    """Whether one limit holds."""
    limit = rule.limit
    bound = limit.bound(found.original)
    passed = None if found.value is None or bound is None else found.value <= bound
    level = rule.level
    if level is None:
        unsure = limit.kind == "ms" and passed is False and found.low is not None and bound is not None
        level = "warn" if unsure and found.low is not None and bound is not None and found.low <= bound else "error"
    return Gate(
        name=limit.name.removeprefix("--"),
        level=level,
        limit=limit.text,
        value=found.value,
        bound=bound,
        unit=limit.kind,
        passed=passed,
        message=rule.message,
    )


def failed(gates: Iterable[Gate]) -> bool:
    """Whether a gate of level `error` failed or could not be checked."""
    return any(gate.level == "error" and gate.passed is not True for gate in gates)


def rules_from_table(table: Mapping[str, object], where: str) -> tuple[Rule, ...]:
    """Read `[tool.compress.gates]` (or `[gates]` of compress.toml): `max-size = "8MB"`, or a table with `limit`.

    Example: `max-latency = { limit = "110%", level = "warn", message = "see docs/latency.md" }`.

    Raises:
        UsageError: an unknown gate, key or level, or a value that is no limit.
    """
    return tuple(_rule(name.replace("_", "-"), value, where) for name, value in table.items())


def _rule(name: str, value: object, where: str) -> Rule:
    if name not in LIMIT_KINDS:
        raise UsageError(f"unknown gate {name!r} in {where}", f"valid gates: {', '.join(LIMIT_KINDS)}")
    entry = dict(value) if isinstance(value, Mapping) else {"limit": value}
    unknown = set(entry) - {"limit", "level", "message"}
    if unknown or "limit" not in entry:
        raise UsageError(
            f"gate {name} in {where} has {'the unknown key ' + repr(unknown.pop()) if unknown else 'no limit'}",
            f'write {name} = "LIMIT" or {name} = {{ limit = "LIMIT", level = "warn" }}',
        )
    level: Any = entry.get("level")
    if level is not None and level not in get_args(Level):
        raise UsageError(f"gate {name} in {where} has the level {level!r}", f"valid: {', '.join(get_args(Level))}")
    limit = parse_limit(f"--{name}", LIMIT_KINDS[name], str(entry["limit"]))
    return Rule(limit, level, str(entry.get("message", "")))


def measured(report: RunReport) -> dict[str, Found]:
    """What a report says about each limit, by flag name."""
    before, after = report.complexity_before or {}, report.complexity_after or {}
    by_role = {artifact.role: float(artifact.bytes) for artifact in report.artifacts}
    return {
        "--max-params": Found(before.get("params"), after.get("params")),
        "--max-flops": Found(before.get("macs"), after.get("macs")),
        "--max-size": Found(by_role.get("original onnx"), by_role.get("onnx")),
        "--max-drop": Found(None, _drop(report)),
        "--max-latency": latency_found(report.latency),
    }


def predicted_found(predictions: Iterable[Mapping[str, object]], limit: Limit) -> Found | None:
    """The predicted latencies of a limit's device, `Found()` where there is no prediction; None without a device."""
    if not limit.target:
        return None
    rows = [row for row in predictions if row["target"] == limit.target]
    return Found(rows[0]["original_ms"], rows[0]["compressed_ms"]) if rows else Found()  # type: ignore[arg-type]


def _drop(report: RunReport) -> float | None:
    drops = [drop for drop in (task.drop() for task in report.tasks) if drop is not None]
    return max(drops) if drops else None


def latency_found(latency: Mapping[str, object] | None) -> Found:
    """p50 of both files and the low end of the compressed one's, from a report's latency section."""
    if latency is None:
        return Found()
    rows = {row["profile"]: row["p50_ms"] for row in latency["latencies"]}  # type: ignore[attr-defined]
    original, low = rows.get("original"), latency.get("ratio_low")
    return Found(original, rows.get("compressed"), None if original is None or low is None else original * low)
