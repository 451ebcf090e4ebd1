"""`compress export`: a checkpoint or any ONNX file as a verified ONNX file, its weights in the form that is asked."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from compress_cli import options as o
from compress_cli.commands.groups import CALIB, MODEL, takes
from compress_cli.console import Out
from compress_cli.errors import EXIT_OK

EPILOG = """Examples:

compress export model.pt --weights packed -o model.onnx

compress export resnet18.pth --weights int8 --calib images/ -o resnet18-int8.onnx

compress export pruned.onnx --weights packed-cb4 -o small.onnx

compress export model.pt --weights dense --format ort,ncnn,mnn -o model.onnx"""

Source = Annotated[
    str, typer.Argument(metavar="FILE", help="Checkpoint, or an ONNX file made by any tool.", show_default=False)
]
Target = Annotated[
    str | None, o.option("-o", "--output", help="ONNX file to write (default: NAME-WEIGHTS.onnx).", metavar="FILE")
]
Weights = Annotated[
    str,
    o.option(
        "--weights",
        help="auto (packed when smaller), dense, packed, packed-fp16, packed-q2..q8, packed-cb2..cb8, packed-cb "
        "(bits chosen per layer) or int8. Default auto.",
    ),
]
MaxError = Annotated[
    str | None,
    o.option("--max-error", help="packed-cb: relative output error allowed, such as 2%. Default: that of packed-cb4."),
]
Calibration = Annotated[
    str, o.option("--calibration", help="int8 ranges: minmax, entropy or percentile. Default minmax.")
]
ReduceRange = Annotated[
    bool, o.option("--reduce-range", help="int8 with 7-bit weights, for x86 processors without VNNI.")
]
Formats = Annotated[
    list[str] | None,
    o.option(
        "--format",
        help="Also write ort (with its operators' configuration), ncnn, mnn, litert or executorch, each compared with "
        "the ONNX file; commas or repeated. All but ort need their own packages (compress doctor).",
        metavar="FORMAT",
    ),
]
Ort = Annotated[bool, o.option("--ort", help="Short for --format ort.")]
Mobile = Annotated[
    bool, o.option("--mobile", help="Pooling as GlobalAveragePool, and a report on NNAPI and CoreML support.")
]


@takes(MODEL, CALIB)
def export(
    file: Source,
    output: Target = None,
    weights: Weights = "auto",
    max_error: MaxError = None,
    calibration: Calibration = "minmax",
    reduce_range: ReduceRange = False,
    mobile: Mobile = False,
    format: Formats = None,
    ort: Ort = False,
    seed: o.Seed = None,
    overwrite: Annotated[bool, o.option("--overwrite", help="Replace a file that is already there.")] = False,
    json: o.Json = False,
    quiet: o.Quiet = False,
    **shared: Any,
) -> int:
    """Write a model as one ONNX file that standard runtimes open, compare it with the original, and say what it weighs.

    Packed weights unpack themselves while the runtime loads the file: smaller on disk, the same model in memory.
    """
    from compress_cli.exporting import Request, parse_request, run_export
    from compress_cli.render.exporting import render_export

    out = Out(as_json=json, quiet=quiet)
    request: Request = parse_request(
        file,
        output,
        weights=weights,
        max_error=max_error,
        calibration=calibration,
        reduce_range=reduce_range,
        mobile=mobile,
        formats=[*(format or ()), *(["ort"] if ort else [])],
        overwrite=overwrite,
        model={
            "arch": shared["arch"],
            "arch_args": tuple(shared["arch_args"] or ()),
            "input_shape": shared["input_shape"],
            "inputs": tuple(shared["input"] or ()),
            "trust_pickle": bool(shared["trust_pickle"]),
            "seed": seed or 0,
        },
        calib=shared["calib"],
        images={name: shared[name] for name in CALIB if name != "calib"},
    )
    document = run_export(request, out)
    out.result(document, lambda console: render_export(document, console))
    return EXIT_OK
