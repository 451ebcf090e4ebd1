"""Bytes of a file on disk and gzipped, weights files beside an ONNX model included.

Gzip (level 6, as `gzip FILE`) streams through one compressor: constant memory. It does about 20 MB/s of dense float
weights, so its time is bounded by sampling: of what exceeds `EXACT_BYTES` every n-th megabyte is compressed and the
result scaled (`gzip_estimated` is then True). At most `SAMPLE_BYTES` are compressed: about 3 s for a file of any size.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20
EXACT_BYTES = 128 * CHUNK
SAMPLE_BYTES = 64 * CHUNK
LEVEL = 6
_GZIP_WINDOW = 31  # zlib: 32 kB window in a gzip frame


@dataclass(frozen=True, slots=True)
class FileSize:
    """`bytes` as stored, `gzip_bytes` compressed (None when not asked for); sidecar files are included."""

    bytes: int
    gzip_bytes: int | None
    files: tuple[str, ...]
    gzip_estimated: bool = False


def file_size(path: Path, gzip: bool = True) -> FileSize:
    """Size of `path` and, for an ONNX file, of the external data files that it names.

    Args:
        path: any file.
        gzip: whether to compress as well: at most about 6 s a file.

    Raises:
        OSError: a file is not there or cannot be read.
    """
    path = Path(path)
    files = (path, *external_data_files(path))
    sizes = [file.stat().st_size for file in files]
    packed = sum(gzipped_bytes(file) for file in files) if gzip else None
    estimated = gzip and max(sizes) > EXACT_BYTES
    return FileSize(sum(sizes), packed, tuple(file.name for file in files), estimated)


def gzipped_bytes(path: Path) -> int:
    """Size of `path` as a gzip file; above `EXACT_BYTES` an estimate from evenly spaced megabytes."""
    total = path.stat().st_size
    step = 1 if total <= EXACT_BYTES else -(-total // SAMPLE_BYTES)
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    size = seen = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            seen += len(chunk)
            size += len(compressor.compress(chunk))
            file.seek((step - 1) * CHUNK, 1)
    size += len(compressor.flush())
    return size if seen == total else round(size * total / seen)


def external_data_files(path: Path) -> tuple[Path, ...]:
    """Files beside an ONNX model that hold its large tensors; none for other files or ones that are not there."""
    if path.suffix.lower() != ".onnx":
        return ()
    return tuple(sorted({path.parent / name for name in _locations(path) if (path.parent / name).is_file()}))


def _locations(path: Path) -> Iterator[str]:
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception:  # protobuf's DecodeError: named .onnx but is none, its own bytes are all there is to count
        return
    for tensor in model.graph.initializer:
        yield from (entry.value for entry in tensor.external_data if entry.key == "location")
