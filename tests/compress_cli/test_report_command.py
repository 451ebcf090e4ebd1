"""`compress report`: text, JSON, Markdown and the self-contained HTML file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from compress_cli.app import run
from compress_cli.render import html
from compress_cli.render.text import fitting
from compress_cli.render.words import Rows
from compress_cli.report import LayerRow, RunReport, Skipped
from tests.reports import make_report

HISTORY = [{"epoch": 1, "loss": 0.9, "metric": 91.0}, {"epoch": 2, "loss": 0.5, "metric": 92.0}]


def full_report() -> RunReport:
    return replace(
        make_report(),
        layers=(LayerRow("[bold]conv1<b>", (16, 3, 3, 3), 432, 0, 400), LayerRow("fc", (10, 64), 640, 0, 64)),
        skipped=(Skipped("bn.weight", "fewer than two dimensions"),),
        training={"history": HISTORY},
        warnings=("conv1 keeps 32 of 432 weights",),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "report.json").write_text(json.dumps(full_report().to_dict()))
    return tmp_path


def test_report_survives_json() -> None:
    report = full_report()
    assert RunReport.from_dict(json.loads(json.dumps(report.to_dict()))).to_dict() == report.to_dict()


def test_text_fits_80_columns(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["report", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "[bold]conv1<b>" in shown
    assert "93.00" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_json_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["tasks"][0]["scores"]["final"] == 92.0


def test_markdown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder), "--markdown", "-"]) == 0
    text = capsys.readouterr().out
    assert "| class (top-1, %) | 93.00 | 92.00 | 100 |" in text
    assert "ONNX file 10.0x smaller: 40.00 MB to 4.00 MB" in text


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [
            value for name, value in attrs if name in ("src", "href") and value and not value.startswith("#")
        ]
        if tag not in ("meta", "link", "br", "use", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "link", "br", "use", "path"):
            assert self.open.pop() == tag


def test_html_is_one_well_formed_file_without_references(folder: Path) -> None:
    page = folder / "out.html"
    assert run(["report", str(folder), "--html", str(page)]) == 0
    text = page.read_text()
    reader = _Reader()
    reader.feed(re.sub(r"<(\w+)([^>]*)/>", r"<\1\2></\1>", text))
    assert reader.open == []
    assert reader.links == []
    assert "@import" not in text
    assert "url(http" not in text
    assert "[bold]conv1&lt;b&gt;" in text
    assert "<svg" in text
    assert "currentColor" in text


def test_html_is_deterministic() -> None:
    assert html.render([full_report()]) == html.render([full_report()])


def test_several_runs_are_put_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(folder), str(folder / "report.json")]) == 0
    assert "Side by side" in capsys.readouterr().out
    assert "Side by side" in html.render([full_report(), full_report()])


def test_nine_runs_fit_into_eighty_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", *[str(folder)] * 9]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("Side by side" in line for line in lines) > 1
    assert sum(line.count("5.00 k") for line in lines) == 9


def test_tables_are_split_without_losing_a_column() -> None:
    rows = Rows("t", ("", "aaaa", "bbbb", "c"), (("label", "1", "2", "33333"),))
    assert [part.columns for part in fitting(rows, 17)] == [("", "aaaa", "bbbb"), ("", "c")]
    assert [part.columns for part in fitting(rows, 24)] == [rows.columns]
    assert [part.cells for part in fitting(rows, 1)] == [(("label", cell),) for cell in ("1", "2", "33333")]


def test_a_missing_run_is_an_input_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(tmp_path)]) == 3
    assert "report.json does not exist" in capsys.readouterr().err
