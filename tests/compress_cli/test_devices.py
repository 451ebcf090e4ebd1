"""`compress devices`: the list, filters, JSON, and no torch for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from compress_cli.app import run


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["devices"]) > 80
    assert document["hidden"] > 0
    for row in document["devices"]:
        assert row["reliable"]
        assert row["threads"] <= 8
        assert 0 < row["median_error"] <= row["p90_error"]
    assert run(["devices", "--all", "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert len(everything["devices"]) == len(document["devices"]) + document["hidden"]


def test_words_filter(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["devices", "raspberry", "pi", "--all"]) == 0
    shown = capsys.readouterr().out
    assert "raspberry-pi-5" in shown
    assert "snapdragon" not in shown
    assert run(["devices", "nokia"]) == 2
    assert "no device has the words nokia" in capsys.readouterr().err


def test_devices_need_no_torch() -> None:
    code = "import sys\nfrom compress_cli.app import run\nrun(['devices', '--json'])\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
