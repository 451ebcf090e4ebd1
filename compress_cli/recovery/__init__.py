"""Closed-form recovery: least squares for what a compression left, layer by layer, from unlabelled images.

The one routine for masks, channels and factors (`specs/recovery.md`); nothing here prints or knows the command line.
"""

from __future__ import annotations

from compress_cli.recovery.correspondence import Correspondence
from compress_cli.recovery.errors import CannotTrace, DoNotMatch, NoImages, RecoveryError
from compress_cli.recovery.record import LayerRecovery, RecoveryRecord
from compress_cli.recovery.routine import RecoveryOptions, recover

__all__ = [
    "CannotTrace",
    "Correspondence",
    "DoNotMatch",
    "LayerRecovery",
    "NoImages",
    "RecoveryError",
    "RecoveryOptions",
    "RecoveryRecord",
    "recover",
]
