"""What `compress inspect` prints: a file, an ONNX file or a run folder, readable in 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from compress_cli.quantities import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Console

    from compress_cli.inspection import Inspection, TensorRow
    from compress_cli.onnx_summary import OnnxInspection
    from compress_cli.run_summary import RunInspection

KINDS = {
    "ours": "written by compress",
    "state_dict": "state dict",
    "training": "training checkpoint",
    "pickled_module": "pickled network",
    "legacy": "state dict, legacy torch.save format",
    "safetensors": "safetensors",
}
ORIGINS = {
    "file": "stored in the file",
    "flag": "from --arch",
    "recognised": "recognised by names and shapes",
    "pickle": "the pickled network itself",
    "none": "",
}


def render_checkpoint(found: Inspection, console: Console, top: int) -> None:
    """Print facts, the `top` largest tensors (0: all), what is left alone, and remarks."""
    console.print(found.path, markup=False, style="bold", soft_wrap=True)
    console.print(_facts_table(_facts(found)))
    rows = sorted(found.tensors, key=lambda row: -row.elements)[: top or None]
    if rows:
        console.print()
        console.print(_tensors(rows, len(found.tensors)))
    if found.channels is not None:
        console.print()
        console.print(_groups(found.channels, top))
        for reason, tensors, channels in found.channels["why"]:
            console.print(f"  frozen: {channels:,} channels of {tensors} tensors, {reason}", markup=False)
    for line in _remarks(found):
        console.print(line, markup=False)


def _facts(found: Inspection) -> Iterator[tuple[str, str]]:
    totals = found.totals
    yield "kind", _kind(found)
    if found.architecture:
        yield "architecture", f"{_architecture(found.architecture)} ({ORIGINS[found.origin]})"
    elif found.origin == "pickle":
        yield "architecture", ORIGINS["pickle"]
    else:
        yield "architecture", "unknown"
    yield "size", f"{format_bytes(found.bytes)} in {totals['tensors']} tensors"
    yield "parameters", f"{totals['params']:,}{_zeros(totals['zeros'], totals['params'])}"
    if totals["buffers"]:
        yield "buffers", f"{totals['buffers']:,}"
    yield "dtypes", ", ".join(f"{name} {format_count(count)}" for name, count in found.dtypes.items())
    yield "ranked", _ranked(totals)
    for spec in found.inputs:
        yield f"input {spec['name']}", f"{'x'.join(map(str, spec['shape']))} {spec['dtype']} (without the batch)"
    if found.complexity is not None:
        yield "MACs", _macs(found.complexity)
    for plan in found.plans:
        yield "plan applied", _plan(plan)
    for name, value in list(found.metadata.items())[:8]:
        yield f"metadata {name}", str(value)[:200]


def _kind(found: Inspection) -> str:
    kind = KINDS.get(found.kind, found.kind)
    inside = f", weights under {found.key_path!r}" if found.key_path else ""
    return f"{kind}{inside}{f', prefix {found.prefix_stripped!r} stripped' if found.prefix_stripped else ''}"


def _architecture(document: Mapping[str, Any]) -> str:
    arguments = dict(document.get("args") or {})
    return str(document.get("reference")) + "".join(f" {name}={value}" for name, value in arguments.items())


def _zeros(zeros: int, count: int) -> str:
    return f", {zeros:,} of them zero ({zeros / count:.2%})" if zeros else ", none of them zero"


def _ranked(totals: Mapping[str, int]) -> str:
    if not totals["ranked_tensors"]:
        return "nothing that magnitude pruning could rank"
    share = totals["ranked_zeros"] / totals["ranked_weights"]
    zeros = f", sparsity {share:.2%}" if share >= 0.00005 else ""
    return f"{totals['ranked_weights']:,} weights in {totals['ranked_tensors']} tensors can be pruned{zeros}"


def _macs(complexity: Mapping[str, Any]) -> str:
    macs = complexity.get("macs", 0)
    text = f"{format_count(macs)} (FLOPs {format_count(2 * macs)}), batch {complexity.get('batch', 1)}"
    sparse = complexity.get("sparse_macs")
    if sparse is None or format_count(sparse) == format_count(macs):
        return text
    return f"{text}; {format_count(sparse)} if zeros were skipped"


def _plan(plan: Mapping[str, Any]) -> str:
    words = [str(plan.get("method", "unknown"))]
    words += [f"{name} {plan[name]}" for name in ("sparsity", "scope", "score") if plan.get(name) is not None]
    return ", ".join(words)


def _tensors(rows: list[TensorRow], count: int) -> Table:
    title = f"All {count} tensors" if len(rows) == count else f"Largest {len(rows)} of {count} tensors (--top 0: all)"
    table = _table(title, "tensor", "shape", "dtype", "zeros", "density", "ranked")
    for row in rows:
        shape = "x".join(map(str, row.shape)) or "scalar"
        ranked = "yes" if row.left_out is None else "no"
        name = row.name + (f" = {row.same_as}" if row.same_as else "")
        table.add_row(escape(name), shape, row.dtype, f"{row.zeros:,}", f"{row.density:.2%}", ranked)
    return table


def _groups(channels: Mapping[str, Any], top: int) -> Table:
    """Groups of channels, those that could save most MACs first; savings are those of one channel now."""
    rows = sorted(channels["groups"], key=lambda row: -row["macs_at_most"])
    shown = rows[: top or None]
    title = f"{len(shown)} of {len(rows)} channel groups ({channels['units']:,} removable channels)"
    table = _table(title, "group", "channels", "tensors", "params each", "MACs each")
    for row in shown:
        saved = (format_count(row["params_per_unit"]), format_count(row["macs_per_unit"]))
        table.add_row(escape(row["name"]), f"{row['units']:,}", str(len(row["members"])), *saved)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(escape(name), escape(value))
    return table


def _remarks(found: Inspection) -> Iterator[str]:
    yield ""
    if found.left_out:
        yield "Left alone by magnitude pruning:"
    for reason, names in found.left_out.items():
        yield f"  {len(names)} x {reason}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    bad = [row for row in found.tensors if row.nonfinite]
    if bad:
        yield f"Warning: NaN or infinite values in {len(bad)} tensors: {', '.join(row.name for row in bad[:3])}"
    if found.ignored_entries:
        yield f"Not used from the file: {', '.join(found.ignored_entries[:8])}"
    for note in found.notes:
        yield f"Note: {note}"
    yield from _cost_remarks(found.complexity or {})


def _cost_remarks(complexity: Mapping[str, Any]) -> Iterator[str]:
    if complexity.get("uncounted"):
        parts = ", ".join(f"{name} ({calls} calls)" for name, calls in complexity["uncounted"])
        yield f"Not counted in MACs: {parts}"
    if complexity.get("uncalled"):
        yield f"Not used by the forward pass: {', '.join(complexity['uncalled'])}"
    for note in complexity.get("notes", ()):
        yield f"Note: {note}"


def render_onnx(found: OnnxInspection, console: Console) -> None:
    """Print an ONNX file's facts."""
    stored = found.initializers
    kinds = ", ".join(f"{name} {row['count']} ({format_bytes(row['bytes'])})" for name, row in stored.items())
    facts = {
        "kind": f"ONNX, opset {', '.join(f'{name} {version}' for name, version in found.opsets.items())}"
        + (f", made by {found.producer}" if found.producer else ""),
        "size": format_bytes(found.bytes) + (f", data in {', '.join(found.external)}" if found.external else ""),
        "weights": f"{found.packed} (compress unpack writes them out)" if found.packed else "dense",
        "nodes": f"{found.nodes}: " + ", ".join(f"{name} {count}" for name, count in found.operators.items()),
        "initializers": f"{sum(row['count'] for row in stored.values())}: {kinds}",
        **{f"input {item['name']}": _value(item) for item in found.inputs},
        **{f"output {item['name']}": _value(item) for item in found.outputs},
        **{f"metadata {name}": value[:200] for name, value in list(found.metadata.items())[:8]},
    }
    console.print(found.path, markup=False, style="bold", soft_wrap=True)
    console.print(_facts_table(facts.items()))


def _value(item: Mapping[str, Any]) -> str:
    return f"{'x'.join(map(str, item['shape']))} {item['dtype']}"


def render_run(found: RunInspection, console: Console) -> None:
    """Print a run's report, or how far it came."""
    if found.report is not None:
        from compress_cli.render.text import render_report

        render_report(found.report, console)
        return
    done = ", ".join(found.stages) or "none"
    console.print(f"{found.path}: an unfinished run of {found.command} (stages done: {done})", markup=False)
    console.print("Continue it with the same command and --resume.", markup=False)
