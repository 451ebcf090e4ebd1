"""One run of `compress prune`: load -> baseline -> plan -> apply -> tune -> export -> verify -> measure -> report.

Each step is a function; `Session` carries configuration, folder, timings and warnings along. Numbers in the report
come from the written files and from measurements, never from what a step says it did.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compress_cli.checkpoint import LoadedModel, load, read_tensors, save
from compress_cli.config import RunConfig
from compress_cli.console import Out
from compress_cli.errors import UsageError, VerificationError
from compress_cli.gates import with_gates
from compress_cli.quality import Quality
from compress_cli.report import Achieved, Artifact, LayerRow, RunReport, Skipped
from compress_cli.session import Session, command_line, open_session
from compress_cli.shipping import Shipment, ship
from compress_cli.translate import pruning_errors
from profilers.complexity import measure
from profilers.machine import describe
from profilers.size import file_size
from pruners import magnitude

if TYPE_CHECKING:
    from torch import Tensor, nn


def run(config: RunConfig, out: Out, *, resume: bool = False, overwrite: bool = False) -> RunReport:
    """Carry out one configuration in its run folder and return the report (also written as `report.json`).

    Raises:
        CompressError: with the exit code of design.md section 4; no half-written file is left.
    """
    _require_sparsity(config)
    loaded = _load(config, out)
    with open_session(config, out, resume=resume, overwrite=overwrite) as session:
        return _run(session, loaded)
