"""What kind of checkpoint a file is, from its first bytes and its zip members; nothing in it is run and no torch.

Kinds and markers (specs/checkpoints.md): safetensors = 8-byte length then `{`; torch.save = zip with `data.pkl`;
TorchScript = zip with `code/` or `constants.pkl`; torch.export = zip with `archive_format`; legacy torch.save = its
own magic; ONNX = protobuf. Anything that is plainly something else is refused here, saying what it is.
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from enum import StrEnum
from pathlib import Path

from compress_cli.errors import InputError

NEST_KEYS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "net", "params")
"""Where training scripts put the weights inside their dict; the first that holds weights is taken."""

_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46")
_HEAD_BYTES = 4096
_PICKLE_BYTES = 64 * 1024
_LARGEST_HEADER = 100_000_000  # the limit of the safetensors format


class Kind(StrEnum):
    """The kinds of checkpoint that are told apart."""

    OURS = "ours"
    STATE_DICT = "state_dict"
    TRAINING = "training"
    PICKLED_MODULE = "pickled_module"
    LEGACY = "legacy"
    TORCHSCRIPT = "torchscript"
    EXPORTED_PROGRAM = "exported_program"
    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    EMPTY = "empty"
    UNKNOWN = "unknown"


# (offset, bytes, what the file is, what to type); checked when no checkpoint kind fits.
_FOREIGN = (
    (0, b"\x1f\x8b", "a gzip-compressed file", "unpack it first: gunzip -k FILE (a .tar.gz: tar xzf FILE)"),
    (0, b"\xfd7zXZ\x00", "an xz-compressed file", "unpack it first: xz -dk FILE (a .tar.xz: tar xJf FILE)"),
    (0, b"BZh", "a bzip2-compressed file", "unpack it first: bunzip2 -k FILE"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first: 7z x FILE"),
    (257, b"ustar", "a tar archive", "unpack it first: tar xf FILE"),
    (0, b"\x89HDF\r\n", "an HDF5 file (Keras?)", "pass a PyTorch checkpoint; only PyTorch weights are read"),
    (4, b"TFL3", "a TensorFlow Lite model", "pass a PyTorch checkpoint; only PyTorch weights are read"),
    (0, b"GGUF", "a GGUF file", "pass a PyTorch checkpoint; only PyTorch weights are read"),
    (0, b"\x93NUMPY", "a NumPy array", "pass a checkpoint written by torch.save or safetensors"),
    (0, b"\x89PNG", "a PNG image", "pass the checkpoint; images go to --data"),
    (0, b"\xff\xd8\xff", "a JPEG image", "pass the checkpoint; images go to --data"),
    (0, b"%PDF", "a PDF document", "pass the checkpoint file"),
    (4, b"ORTM", "an ONNX Runtime .ort model", "pass the PyTorch checkpoint it was made from"),
)


def sniff(path: str | Path) -> Kind:
    """Tell what kind of checkpoint a file is; reads some kilobytes, runs nothing.

    Raises:
        InputError: the file is missing, empty, cut short, a folder, text, or plainly something else.
    """
    file = Path(path)
    head, size = _head(file)
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _sniff_zip(file)
    if head.startswith(_LEGACY_MAGIC):
        return Kind.LEGACY
    if _is_safetensors(file, head, size):
        return Kind.SAFETENSORS
    if _is_onnx(file, head):
        return Kind.ONNX
    _refuse_foreign(file, head)
    return Kind.UNKNOWN


def _head(file: Path) -> tuple[bytes, int]:
    """The first bytes of a file and its size, or the reason why there are none."""
    if file.is_dir():
        raise _folder_error(file)
    if file.exists() and not file.is_file():  # a pipe would block, and weights must be read out of order
        raise InputError(f"{file} is a pipe or a device, not a file", "write the checkpoint to a file first")
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            size = stream.seek(0, io.SEEK_END)
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist", _near_names(file)) from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}", "check its permissions (ls -l)") from error
    if not head:
        raise InputError(f"{file} is empty (0 bytes)", "copy or download it again; the last attempt wrote nothing")
    return head, size


def _near_names(file: Path) -> str:
    import difflib

    try:
        names = [item.name for item in file.parent.iterdir() if item.is_file()]
    except OSError:
        return f"check the path: the folder {file.parent} cannot be read"
    close = difflib.get_close_matches(file.name, names, n=3)
    return f"did you mean {', '.join(str(file.parent / name) for name in close)}?" if close else "check the path"


def _folder_error(folder: Path) -> InputError:
    suffixes = {".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors", ".tar"}
    try:
        inside = sorted(item.name for item in folder.iterdir() if item.suffix in suffixes and item.is_file())
    except OSError as error:
        return InputError(f"{folder} is a folder that cannot be read: {error.strerror}", "pass a checkpoint file")
    usual = [name for name in ("model.pt", "model.safetensors", "pytorch_model.bin") if name in inside]
    best = (usual or inside)[:1]
    fix = f"pass the file: {folder / best[0]}" if best else "pass a checkpoint file (.pt, .pth, .safetensors)"
    return InputError(f"{folder} is a folder, not a checkpoint", fix)


def _sniff_zip(file: Path) -> Kind:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            members = {name.partition("/")[2] or name for name in names}
            if "archive_format" in members or any(name.startswith("models/") for name in members):
                return Kind.EXPORTED_PROGRAM
            if "constants.pkl" in members or any(name.startswith("code/") for name in members):
                return Kind.TORCHSCRIPT
            pickled = next((name for name in names if name == "data.pkl" or name.endswith("/data.pkl")), None)
            if pickled is None:
                raise _foreign_zip(file, names)
            with archive.open(pickled) as stream:
                head = stream.read(_PICKLE_BYTES)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"{file} is cut short or damaged ({file.stat().st_size:,} bytes): its zip directory cannot be read",
            "copy or download it again and compare the size with the original",
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}", "check the disk") from error
    if not any(name.startswith("data/") for name in members):
        return Kind.EMPTY
    return _kind_of_pickle(head)


def _foreign_zip(file: Path, names: list[str]) -> InputError:
    if names and all(name.endswith(".npy") for name in names):
        return InputError(
            f"{file} is a NumPy .npz archive ({len(names)} arrays)",
            "turn it into a checkpoint: torch.save({k: torch.tensor(v) for k, v in numpy.load(FILE).items()}, 'w.pt')",
        )
    shown = ", ".join(names[:3])
    return InputError(
        f"{file} is a zip archive, but no checkpoint (no data.pkl; it holds {shown or 'nothing'})",
        "if a checkpoint is packed inside, unpack it first: unzip FILE",
    )


def _kind_of_pickle(head: bytes) -> Kind:
    """A first guess at what a torch.save pickle holds, from its first opcodes; the reader has the last word."""
    strings, called, first = [], [], ""
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
                called.append(str(argument or ""))
                first = first or opcode.name
            elif "UNICODE" in opcode.name:
                strings.append(str(argument))
            elif opcode.name == "EMPTY_DICT":
                first = first or opcode.name
    except (ValueError, IndexError, UnicodeDecodeError):  # the head ends in the middle of an opcode: enough was read
        pass
    if strings[:2] == ["format_version", "compress_version"]:
        return Kind.OURS
    if any(name.startswith("torch.nn.modules.") for name in called):
        return Kind.PICKLED_MODULE
    nested = first == "EMPTY_DICT" and any(name in NEST_KEYS for name in strings)
    return Kind.TRAINING if nested else Kind.STATE_DICT


def _is_safetensors(file: Path, head: bytes, size: int) -> bool:
    """Whether it is a safetensors file; its header must agree with the file's length.

    Raises:
        InputError: it is one, but cut short or damaged.
    """
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or not 2 <= length <= _LARGEST_HEADER:
        return False
    damaged = InputError(
        f"{file} is a safetensors file that is cut short or damaged ({size:,} bytes)",
        "copy or download it again and compare the size with the original",
    )
    if 8 + length > size:
        raise damaged
    with file.open("rb") as stream:
        stream.seek(8)
        header = stream.read(length)
    try:
        entries = json.loads(header)
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise damaged from error
    if 8 + length + end != size:
        raise damaged
    return True


def _is_onnx(file: Path, head: bytes) -> bool:
    """Whether it starts like an ONNX ModelProto: field 1 (ir_version) small, then another known field tag."""
    if len(head) < 3:
        return False
    tags = {0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA}
    starts = head[0] == 0x08 and 1 <= head[1] <= 30 and head[2] in tags
    return starts or (file.suffix == ".onnx" and head[0] in tags)


def _refuse_foreign(file: Path, head: bytes) -> None:
    if head.startswith(b"version https://git-lfs.github.com/spec"):
        raise InputError(
            f"{file} is a git-lfs pointer, not the weights themselves", "fetch the real file: git lfs pull"
        )
    for offset, magic, what, fix in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise InputError(f"{file} is {what}, not a PyTorch checkpoint", fix.replace("FILE", str(file)))
    if head[:1] == b"\x80" and len(head) > 1 and 2 <= head[1] <= 5:
        raise InputError(
            f"{file} is a plain Python pickle (pickle.dump), not a torch.save checkpoint; loading it would run code",
            "if you trust it, re-save it: torch.save(pickle.load(open(FILE, 'rb')), 'weights.pt')",
        )
    _refuse_text(file, head)


def _refuse_text(file: Path, head: bytes) -> None:
    try:
        text = head.decode("utf-8", errors="strict" if len(head) < _HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        return
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<?xml", "<!--")):
        raise InputError(
            f"{file} is a web page, not a checkpoint (a download that returned a page instead of the file)",
            "open the address in a browser, and download the file itself",
        )
    if file.suffix == ".py":
        raise InputError(f"{file} is a Python file, not a checkpoint", f"pass it as --arch {file}:FACTORY")
    shown = " ".join(start.split())[:40]
    raise InputError(f"{file} is a text file, not a checkpoint (it begins {shown!r})", "pass the file with the weights")
