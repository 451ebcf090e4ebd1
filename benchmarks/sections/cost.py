"""What files, searches and compressed networks cost: bytes, memory, time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.sections.markdown import table


def selection(document: dict[str, Any]) -> Iterator[str]:
    """Cost of the global selection against torch's own pruning."""
    yield (
        "**Choosing and zeroing 90 % of a network's weights**, CPU seconds and extra memory, each in a fresh process "
        "(`benchmarks/selection.py`). One streaming read of the weights is the unit."
    )
    yield ""
    titles = {"ours": "compress", "global_unstructured": "torch.nn.utils.prune"}
    rows = [
        [
            f"{row['model']}: {titles[row['method']]}",
            f"{row['cpu_s_min']:.3f} s",
            f"{row['reads_min']:.1f}x",
            f"{row['extra_mb_median']:.0f} MB",
        ]
        for row in document["rows"]
        if row["method"] in titles
    ]
    yield from table(["", "CPU", "of one read", "extra memory"], rows)


def packing(document: dict[str, Any]) -> Iterator[str]:
    """Bytes of ONNX files at 90 % zeros, what they lie above their entropy, and memory while loading."""
    yield (
        "**ONNX files at 90 % zeros**, MB, and how far each lies above its bound: the entropy of indices and codes, "
        "the other tensors, the network's own nodes (`benchmarks/packing_tiers.py`; seeded, 2 % of each layer kept)."
    )
    yield ""
    networks = {name: net["forms"] for name, net in document["networks"].items() if "packed-q6" in net["forms"]}
    forms = list(dict.fromkeys(form for found in networks.values() for form in found))
    rows = [[name, *(_packed(found.get(form)) for form in forms)] for name, found in networks.items()]
    yield from table(["network", *forms], rows)
    if "fc" in document["networks"]:
        peaks = document["networks"]["fc"]["forms"]
        yield ""
        yield (
            "Memory while ONNX Runtime loads a layer of 411 MB, times its size: "
            + ", ".join(f"{form} {row['peak_over_dense']:.1f}" for form, row in peaks.items())
            + "."
        )


def packing_memory(document: dict[str, Any]) -> Iterator[str]:
    """Peaks of packing and loading whole networks."""
    for name, row in document["networks"].items():
        loading = row["loading"]
        yield (
            f"Memory of {name} ({row['dense_bytes'] / 1e6:.0f} MB dense, {row['packed_bytes'] / 1e6:.0f} MB packed), "
            f"times the dense size (`benchmarks/packing_memory.py`): packing {row['packing']:.1f}, loading the dense "
            f"file {loading['dense']:.1f}, the packed one {loading['packed']:.1f}."
        )


def _packed(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    over = f" (+{100 * row['over_bound']:.0f} %)" if "over_bound" in row else ""
    return f"{row['bytes'] / 1e6:.2f}{over}"


def decompose_latency(document: dict[str, Any]) -> Iterator[str]:
    """MACs of a decomposition beside its measured time."""
    yield (
        "**Low rank and time**: share of the original's parameters, MACs and ONNX Runtime latency (one thread, "
        "interleaved, seeded weights, `benchmarks/decompose_latency.py`); the last row of each network asked for 70 % "
        "of the latency."
    )
    yield ""
    cells = [
        [
            f"{network}, {name}",
            f"{row['params_share']:.0%}",
            f"{row['macs_share']:.0%}",
            f"{row['latency_ratio']:.3f}" + ("" if row["trustworthy"] else " (not trustworthy)"),
        ]
        for network, rows in document.items()
        for name, row in rows.items()
    ]
    yield from table(["network, form", "parameters", "MACs", "latency"], cells)


def int8(document: dict[str, Any]) -> Iterator[str]:
    """Static int8 against float."""
    machine = document["machine"]
    vnni = "with" if machine["vnni"] else "without"
    yield (
        f"**int8 with packed weights** at 90 % zeros against the float file, {machine['threads']} thread, "
        f"{machine['processor']} {vnni} VNNI (`benchmarks/int8_speed.py`)."
    )
    yield ""
    cells = []
    for name, network in document["networks"].items():
        method = next(iter(network["methods"].values()))
        latency = network["latency"]
        cells.append(
            [
                name,
                f"{network['dense_bytes'] / 1e6:.2f} to {method['bytes'] / 1e6:.2f}",
                f"{latency['float_ms']:.1f} to {latency['int8_ms']:.1f}",
                f"{1 / latency['ratio']:.2f}x",
            ]
        )
    yield from table(["network", "MB", "ms", "faster"], cells)


def sweep_caches(document: dict[str, Any]) -> Iterator[str]:
    """A sweep against separate runs."""
    equal = "the same results" if document["equal"] else "other results"
    yield (
        f"**Sweep** of {len(document['points'])} points ({document['network']}, `benchmarks/sweep_caches.py`): "
        f"{document['sweep_cpu_seconds']:.0f} s of processor time instead of {document['separate_cpu_seconds']:.0f} s "
        f"for separate runs, {equal}."
    )


def channels_latency(document: dict[str, Any]) -> Iterator[str]:
    """Time saved beside MACs saved, by what kept widths are multiples of."""
    yield (
        "**Channels and time**: how many times faster ONNX Runtime gets, and how many times fewer MACs there are, by "
        "the share of all channels that stay and what kept widths are multiples of (one thread, interleaved, "
        "`benchmarks/channels_latency.py`). Widths that are no multiple of 8 give much of the gain away: use "
        "`--round-to 8`. (~): not trustworthy, the machine was uneven."
    )
    yield ""
    found = {(row["model"], row["channels_kept"], row["round_to"]): row for row in document["rows"]}
    multiples = sorted({multiple for _, _, multiple in found})
    cells = [
        [f"{model}, {kept:.0%}", *(_speedup(found.get((model, kept, multiple))) for multiple in multiples)]
        for model, kept in dict.fromkeys((model, kept) for model, kept, _ in found)
    ]
    yield from table(["network, channels", *("any" if m == 1 else f"multiples of {m}" for m in multiples)], cells)


def _speedup(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    doubt = "" if row["reason"].startswith("the blocks agree") else " (~)"
    return f"{row['speedup']:.2f}x of {row['macs_saved']:.2f}x{doubt}"


def cpu_layouts(document: dict[str, Any]) -> Iterator[str]:
    """How much faster training steps are in channels last, and where they run so."""
    rows = document["rows"]
    taken = [f"{name} {_faster(row)}" for name, row in rows.items() if row["taken"]]
    left = [f"{name} {_faster(row)}" for name, row in rows.items() if not row["taken"]]
    yield (
        "**Training on a CPU** runs in channels last where convolutions are narrow. Time of a step in the usual layout "
        f"over that in channels last (1 thread, above 1: faster, `benchmarks/cpu_layouts.py`): {', '.join(taken)}. "
        f"Kept in the usual layout: {', '.join(left)}."
    )


def _faster(row: dict[str, Any]) -> str:
    return f"{row['first_ms'] / row['last_ms']:.2f}x"
