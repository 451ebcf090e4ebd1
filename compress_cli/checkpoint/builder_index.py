"""What distinguishes torchvision's builders: hashes of their tensor names and shapes, with free sizes solved for.

One candidate per builder and variant (with or without auxiliary heads). A size that depends on a parameter p of the
builder (num_classes, num_keypoints, image_size) is kept as a*p + b, found by building at three values of p; all other
shapes are hashed together. `torchvision_index.json` holds the candidates of one torchvision version, written by
benchmarks/build_torchvision_index.py; builders that it lacks are described on the fly in the same way.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress_cli.checkpoint.architecture import Architecture, build
from compress_cli.errors import InputError

INDEX_FILE = Path(__file__).with_name("torchvision_index.json")
COUNTER = "num_batches_tracked"
_NAME_BYTES = 3  # of a name's hash; about 300 names per builder, so a chance hit stays below 2e-5 per name

Shape = tuple[int, ...]
Size = int | tuple[str, int, int]  # a number, or (parameter, a, b) for a * parameter + b

# The three values of each parameter that builds are compared at; two give the line, the third checks it.
_PROBES = {"num_classes": (11, 17, 29), "num_keypoints": (5, 11, 23), "image_size": (2, 3, 5)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One builder with one set of fixed arguments.

    Attributes:
        names: hash of the sorted tensor names, batch counters left out.
        fixed: hash of the names and shapes that no parameter changes.
        free: sizes of the others, some of them (parameter, a, b).
        defaults: what the builder takes for each parameter when it is not given.
        patch: side of a ViT patch; its image_size is patch * sqrt(tokens), and `free` counts tokens.
    """

    builder: str
    args: dict[str, Any]
    names: str
    fixed: str
    free: dict[str, tuple[Size, ...]]
    defaults: dict[str, int]
    patch: int = 0

    def solve(self, shapes: Mapping[str, Shape]) -> dict[str, int] | None:
        """The parameters' values that explain all shapes; None when nothing does. Names must already agree."""
        values: dict[str, int] = {}
        for name, sizes in self.free.items():
            shape = shapes[name]
            if len(shape) != len(sizes) or not all(map(lambda s, n: _fits(s, n, values), sizes, shape)):
                return None
        rest = {name: shape for name, shape in shapes.items() if name not in self.free}
        if shapes_hash(rest) != self.fixed:
            return None
        return self._with_image_size(values)

    def _with_image_size(self, values: dict[str, int]) -> dict[str, int] | None:
        if not self.patch:
            return values
        side = math.isqrt(values["image_size"])
        return {**values, "image_size": side * self.patch} if side * side == values["image_size"] else None


def _fits(size: Size, number: int, values: dict[str, int]) -> bool:
    """Whether a size of the file fits; learns the parameter's value at its first use."""
    if isinstance(size, int):
        return size == number
    parameter, a, b = size
    value, remainder = divmod(number - b, a)
    return remainder == 0 and value >= 1 and values.setdefault(parameter, value) == value


def without_counters(names: Iterable[str]) -> list[str]:
    """Names without `num_batches_tracked`, which old checkpoints and frozen batch norms lack."""
    return [name for name in names if not name.endswith(COUNTER)]


def names_hash(names: Iterable[str]) -> str:
    """Hash of a set of tensor names."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]


def shapes_hash(shapes: Mapping[str, Shape]) -> str:
    """Hash of names with shapes, such as `fc.weight 10x512`."""
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def name_codes(names: Iterable[str]) -> set[bytes]:
    """Short codes of single names, to count how many two networks share."""
    return {hashlib.sha256(name.encode()).digest()[:_NAME_BYTES] for name in names}


def builder_shapes(builder: str, args: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of a builder's tensors, counters left out; nothing is allocated."""
    module = build(Architecture(f"torchvision:{builder}", tuple(args.items())), meta=True)
    state = module.state_dict()
    return {name: tuple(state[name].shape) for name in without_counters(state)}


def variants(builder: str) -> list[dict[str, Any]]:
    """Arguments that add or remove whole parts of a builder's network."""
    import torchvision

    known = inspect.signature(torchvision.models.get_model_builder(builder)).parameters
    if "aux_loss" in known and not builder.startswith("lraspp"):
        return [{}, {"aux_loss": True}]
    if builder in ("googlenet", "inception_v3"):
        return [{}, {"aux_logits": False}]
    return [{}]


def describe(builder: str) -> list[Candidate]:
    """The candidates of one builder of the installed torchvision."""
    return [_describe_variant(builder, args) for args in variants(builder)]


def _describe_variant(builder: str, args: dict[str, Any]) -> Candidate:
    base = builder_shapes(builder, args)
    patch = base["conv_proj.weight"][-1] if builder.startswith("vit_") else 0
    free: dict[str, tuple[Size, ...]] = {}
    defaults: dict[str, int] = {}
    for parameter, probes in _PROBES.items():
        found = _dependence(builder, args, parameter, probes, patch)
        for name, sizes in found.items():
            free[name] = tuple(map(_either, free.get(name, sizes), sizes))
            defaults.setdefault(parameter, _default(base[name], sizes))
    if patch:
        defaults["image_size"] = math.isqrt(defaults["image_size"]) * patch
    fixed = {name: shape for name, shape in base.items() if name not in free}
    return Candidate(builder, args, names_hash(base), shapes_hash(fixed), free, defaults, patch)


def _either(one: Size, other: Size) -> Size:
    return other if isinstance(one, int) else one


def _default(shape: Shape, sizes: tuple[Size, ...]) -> int:
    """The parameter's value in the default build, read back from a shape that depends on it."""
    number, size = next((n, s) for n, s in zip(shape, sizes, strict=True) if not isinstance(s, int))
    return (number - size[2]) // size[1]


def _dependence(
    builder: str, args: dict[str, Any], parameter: str, probes: tuple[int, int, int], patch: int
) -> dict[str, tuple[Size, ...]]:
    """Tensors whose shapes depend linearly on a parameter; empty when the builder does not take it."""
    if (parameter == "image_size") != bool(patch) and parameter == "image_size":
        return {}
    given = [side * patch for side in probes] if parameter == "image_size" else list(probes)
    values = [side * side for side in probes] if parameter == "image_size" else list(probes)
    try:
        shapes = [builder_shapes(builder, {**args, parameter: value}) for value in given]
    except InputError:  # raised for an argument that the builder does not take
        return {}
    names = [name for name in shapes[0] if len({built[name] for built in shapes}) > 1]
    return {name: tuple(_line(parameter, values, sizes) for sizes in _columns(shapes, name)) for name in names}


def _columns(shapes: list[dict[str, Shape]], name: str) -> list[tuple[int, ...]]:
    return list(zip(*(built[name] for built in shapes), strict=True))


def _line(parameter: str, values: list[int], sizes: tuple[int, ...]) -> Size:
    """The line through three (value, size) points.

    Raises:
        ValueError: the size is not a whole multiple plus a whole offset; the builder needs a rule of its own.
    """
    if len(set(sizes)) == 1:
        return sizes[0]
    a, remainder = divmod(sizes[1] - sizes[0], values[1] - values[0])
    b = sizes[0] - a * values[0]
    if remainder or a < 1 or a * values[2] + b != sizes[2]:
        raise ValueError(f"{parameter}: sizes {sizes} at {values} are not on a line")
    return (parameter, a, b)


def floating_builders() -> list[str]:
    """torchvision's builders without the quantizable twins, whose tensors are those of the float ones."""
    import torchvision

    return [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]


def make_index() -> dict[str, Any]:
    """The JSON document for the installed torchvision: candidates, and codes of all names by names hash."""
    import torchvision

    candidates: list[dict[str, Any]] = []
    codes: dict[str, str] = {}
    for builder in floating_builders():
        for candidate in describe(builder):
            candidates.append(_to_dict(candidate))
            names = sorted(name_codes(builder_shapes(builder, candidate.args)))
            codes[candidate.names] = base64.b64encode(b"".join(names)).decode()
    return {"torchvision": torchvision.__version__.partition("+")[0], "candidates": candidates, "codes": codes}


def _to_dict(candidate: Candidate) -> dict[str, Any]:
    return {name: getattr(candidate, name) for name in candidate.__dataclass_fields__}


def read_index(path: Path = INDEX_FILE) -> tuple[list[Candidate], dict[str, set[bytes]]]:
    """The stored candidates, and the name codes by names hash."""
    document = json.loads(path.read_text(encoding="utf-8"))
    candidates = [_from_dict(item) for item in document["candidates"]]
    codes = {names: _unpack(text) for names, text in document["codes"].items()}
    return candidates, codes


def index_is_current(path: Path = INDEX_FILE) -> bool:
    """Whether the index was made from the installed torchvision, the last part of the version aside."""
    import torchvision

    with path.open(encoding="utf-8") as stream:
        made_from = re.search(r'"torchvision":\s*"(\d+\.\d+)', stream.read(200))
    return made_from is not None and torchvision.__version__.startswith(made_from.group(1) + ".")


def _from_dict(item: dict[str, Any]) -> Candidate:
    free = {
        name: tuple(tuple(size) if isinstance(size, list) else size for size in sizes)
        for name, sizes in item["free"].items()
    }
    return Candidate(**{**item, "free": free})


def _unpack(text: str) -> set[bytes]:
    data = base64.b64decode(text)
    return {data[start : start + _NAME_BYTES] for start in range(0, len(data), _NAME_BYTES)}
