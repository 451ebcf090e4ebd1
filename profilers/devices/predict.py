"""Predicted latency of an ONNX file on a device, layer by layer, with the error that such predictions have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profilers.devices.catalog import Device, fitted
from profilers.devices.correction import correction, signature
from profilers.devices.features import BOUNDS, LayerRow, layer_features
from profilers.onnx_cost import GraphCost, GraphLayer

_ROW_FIELDS = tuple(field.name for field in fields(LayerRow))


@dataclass(frozen=True, slots=True)
class LayerTime:
    """Predicted milliseconds of one layer; `bound` is its largest part: compute, memory or overhead."""

    name: str
    type: str
    ms: float
    bound: str
    macs: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted milliseconds per inference.

    Attributes:
        low_ms, high_ms: eight of ten networks that were left out of the fit lay inside such a band.
        median_error, p90_error: of predictions for this device (see `basis`); 0.1 = 10 %.
        caveats: what about this network or device is outside what the model was fitted to.
    """

    device: str
    title: str
    threads: int
    ms: float
    low_ms: float
    high_ms: float
    median_error: float
    p90_error: float
    basis: str
    by_layer: tuple[LayerTime, ...]
    shares: dict[str, float]
    caveats: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return asdict(self)

    def sentence(self) -> str:
        """How far to trust the number."""
        return (
            f"estimate for {self.title}, {self.threads} thread(s): typically within {self.median_error:.0%}, "
            f"one case in ten off by more than {self.p90_error:.0%} ({self.basis})"
        )


def predict(cost: GraphCost, device: Device) -> Prediction:
    """Milliseconds of one inference of `cost.batch` samples on `device`."""
    rows = [layer_features(as_row(layer)) for layer in cost.layers]
    prices = np.exp(device.log_costs) * factor(np.sum(rows, axis=0), device)
    parts = [row * prices for row in rows]
    total = np.sum(parts, axis=0)
    ms = float(total.sum())
    low, high = device.interval
    return Prediction(
        device=device.key,
        title=device.title,
        threads=device.threads,
        ms=ms,
        low_ms=ms * float(np.exp(-high)),
        high_ms=ms * float(np.exp(-low)),
        median_error=device.median_error,
        p90_error=device.p90_error,
        basis=device.basis,
        by_layer=tuple(_layer(layer, part) for layer, part in zip(cost.layers, parts, strict=True)),
        shares={name: float(total[columns].sum() / ms) for name, columns in BOUNDS},
        caveats=tuple(_caveats(cost, device)),
    )


def factor(features: NDArray[np.float64], device: Device) -> float:
    """What a network with these summed features (features,) takes over what its layers' prices say."""
    table = fitted()
    prices, signatures = np.asarray(table["mean_costs"]), np.asarray(table["signatures"])
    return float(np.exp(-correction(signature(features, prices), signatures, device.errors)))


def layers_ms(rows: Sequence[LayerRow], device: Device, scale: float = 1.0) -> list[float]:
    """Milliseconds of single layers: a table of candidates for a search under a latency limit on a predicted device.

    Args:
        scale: `factor` of the network that they belong to.

    Example:
        a 3x3 convolution against its low-rank pair: `layers_ms([dense, first, second], find("raspberry-pi-4", 4))`.
    """
    prices = np.exp(device.log_costs) * scale
    return [float(layer_features(row) @ prices) for row in rows]


def ratio_error() -> tuple[float, float]:
    """(median, 90th percentile) of the error of a ratio of two networks of a family, both left out of the fit."""
    errors = fitted()["ratio_errors"]
    return errors["median"], errors["p90"]


def as_row(layer: GraphLayer) -> LayerRow:
    """A layer of an ONNX file as the features read it."""
    return LayerRow(**{name: getattr(layer, name) for name in _ROW_FIELDS})


def _layer(layer: GraphLayer, part: np.ndarray[Any, Any]) -> LayerTime:
    sums = {name: float(part[columns].sum()) for name, columns in BOUNDS}
    return LayerTime(layer.name, layer.type, float(part.sum()), max(sums, key=lambda name: sums[name]), layer.macs)


def _caveats(cost: GraphCost, device: Device) -> Sequence[str]:
    found = []
    if any(layer.kind == "attention" for layer in cost.layers):
        found.append("no network with attention was among the fitted ones")
    if cost.unknown:
        names = ", ".join(name for name, _ in cost.unknown[:4])
        found.append(f"operators that no fitted network has: {names}")
    if any(layer.op.endswith(("Integer",)) or layer.op.startswith("QLinear") for layer in cost.layers):
        found.append("int8 layers are priced like float ones")
    if cost.batch != 1:
        found.append("the table holds batch 1 only")
    if not device.reliable:
        found.append("this device is outside the table or does not follow the model well")
    return found
