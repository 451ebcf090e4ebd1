"""Units: parsing of limits and formatting for people."""

from __future__ import annotations

import pytest

from compress_cli.errors import UsageError
from compress_cli.quantities import format_bytes, format_count, parse_limit


@pytest.mark.parametrize(
    ("kind", "text", "value", "relative"),
    [
        ("bytes", "8MB", 8e6, False),
        ("bytes", "1.5 KiB", 1536, False),
        ("bytes", "25%", 0.25, True),
        ("ms", "20ms", 20, False),
        ("ms", "0.5s", 500, False),
        ("ms", "110%", 1.1, True),
        ("points", "0.5", 0.5, False),
    ],
)
def test_limits(kind: str, text: str, value: float, relative: bool) -> None:
    limit = parse_limit("--max-x", kind, text)
    assert (limit.value, limit.relative) == (pytest.approx(value), relative)
    assert limit.bound(1000.0) == pytest.approx(value * 1000 if relative else value)
    assert limit.bound(None) == (None if relative else pytest.approx(value))


@pytest.mark.parametrize("text", ["", "8", "MB", "8 parsecs", "-1MB", "nanMB", "infMB", "1e999999999MB", "5e-MB"])
def test_nonsense_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a limit"):
        parse_limit("--max-size", "bytes", text)


def test_formats() -> None:
    assert format_bytes(3_550_000) == "3.55 MB"
    assert format_bytes(12) == "12 B"
    assert format_count(25_557_032) == "25.56 M"
    assert format_count(999) == "999"


@pytest.mark.parametrize(("text", "original", "bound"), [("57%", 100, 57), ("69%", 4600, 3174), ("33.3%", 1000, 333)])
def test_shares_that_come_out_whole_are_whole(text: str, original: int, bound: int) -> None:
    assert parse_limit("--max-params", "params", text).bound(original) == bound


@pytest.mark.parametrize(("kind", "text"), [("params", "0.5"), ("macs", "0.25MACs"), ("bytes", "0.5B")])
def test_less_than_one_is_taken_for_a_forgotten_percent_sign(kind: str, text: str) -> None:
    with pytest.raises(UsageError, match="less than one") as caught:
        parse_limit("--max-x", kind, text)
    assert "%" in str(caught.value.fix)
