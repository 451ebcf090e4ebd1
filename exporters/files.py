"""Reading and writing ONNX files: one file below 2 GB, weights in a second one above."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto

from exporters.errors import BadOnnxFile, first_line
from exporters.proto import all_graphs

ONE_FILE_BYTES = 2_000_000_000  # protobuf refuses messages of 2 GiB


def read(path: Path) -> ModelProto:
    """The model in `path`, with weights from further files.

    Raises:
        BadOnnxFile: it cannot be read, or is no ONNX model.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        missing = Path(error.filename) if error.filename else Path(path)
        where = "there is no such file" if missing == Path(path) else f"its weights file {missing.name} is missing"
        raise BadOnnxFile(path, where) from error
    except OSError as error:
        raise BadOnnxFile(path, error.strerror or first_line(error)) from error
    except Exception as error:  # protobuf's and the checker's own classes
        raise BadOnnxFile(path, f"it is not an ONNX model ({first_line(error)})") from error
    if not model.graph.node and not model.graph.output:
        raise BadOnnxFile(path, "it is not an ONNX model (no graph in it)")
    return model


def write(model: ModelProto, path: Path) -> tuple[Path, ...]:
    """Write `model` to `path`; above 2 GB its large tensors go to `path`.data beside it. Returns the files.

    The first file names the second one, so the two must not be renamed apart.
    """
    if weight_bytes(model) <= ONE_FILE_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return (path,)
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx would append to it
    onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=1024)
    return path, data


def copy(source: Path, target: Path, model: ModelProto) -> tuple[Path, ...]:
    """Copy a file that `read` gave `model` for; one with its weights elsewhere is written anew, so that none is lost.

    Returns the files.
    """
    if source.stat().st_size >= weight_bytes(model):
        shutil.copyfile(source, target)
        return (target,)
    return write(model, target)


def check(path: Path) -> None:
    """The ONNX checker with shape inference.

    Raises:
        BadOnnxFile: with what the checker found.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # the checker's and the shape inference's classes
        raise BadOnnxFile(path, f"the ONNX checker refuses it: {first_line(error)}") from error


def opset(model: ModelProto) -> int:
    """Version of the standard operators; 0 where the model names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def tensor_bytes(tensor: TensorProto) -> int:
    """Bytes of the numbers of a tensor that is in memory, as they would be in the file."""
    return len(tensor.raw_data) or tensor.ByteSize()


def weight_bytes(model: ModelProto) -> int:
    """Bytes of all initializers, inner graphs included."""
    return sum(tensor_bytes(tensor) for graph in all_graphs(model.graph) for tensor in graph.initializer)
