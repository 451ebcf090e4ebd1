"""The description of the machine: complete, JSON, and right for text that we give it."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

from profilers.machine import available_cores, cpu_facts, describe

X86 = "processor\t: 0\nmodel name\t: Fast CPU 9000\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nHardware\t: BCM2835\n"


def test_description_is_json_and_names_the_versions() -> None:
    found = json.loads(json.dumps(describe()))
    import torch

    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["python"] == platform.python_version()
    assert "CPUExecutionProvider" in found["providers"]
    assert 1 <= found["cores"] <= (os.cpu_count() or 1)
    assert found["memory"] > 10**8
    assert found["cpu"]


def test_cpuinfo_of_both_architectures(tmp_path: Path) -> None:
    for text, model, sets in (
        (X86, "Fast CPU 9000", ["avx2", "avx512f", "avx512_vnni"]),
        (ARM, "BCM2835", ["asimd", "asimddp"]),
    ):
        file = tmp_path / "cpuinfo"
        file.write_text(text, encoding="utf-8")
        assert cpu_facts(file) == {"model": model, "instruction_sets": sets}


def test_without_cpuinfo_the_platform_answers(tmp_path: Path) -> None:
    assert cpu_facts(tmp_path / "absent")["model"]
    assert available_cores() >= 1
