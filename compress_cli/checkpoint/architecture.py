"""How a network is built: `torchvision:NAME`, `timm:NAME`, `path/net.py:factory` or `package.mod:factory`.

Weights are never downloaded: torchvision builders get `weights=None`, timm gets `pretrained=False`. A file's factory is
the user's own code and runs as such; what it prints goes to stderr.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress_cli.checkpoint import factories
from compress_cli.errors import InputError, UsageError


@dataclass(frozen=True, slots=True)
class Architecture:
    """What rebuilds a network: a reference and keyword arguments (JSON-able values).

    Example: `Architecture("torchvision:resnet18", (("num_classes", 10),))`.
    """

    reference: str
    args: tuple[tuple[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"reference": self.reference, "args": dict(self.args)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Architecture:
        """Read what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(str(document["reference"]), tuple(dict(document.get("args") or {}).items()))

    def __str__(self) -> str:
        """The reference as typed after `--arch`, with its arguments."""
        return self.reference + "".join(f" {name}={value}" for name, value in self.args)


def parse_architecture(reference: str, args: Iterable[str] = ()) -> Architecture:
    """An architecture from `--arch` and `--arch-args k=v` words; values are Python literals, else text.

    Example: `parse_architecture("torchvision:resnet18", ["num_classes=10"])`.

    Raises:
        UsageError: a reference without `:`, or an argument without `=`.
    """
    if ":" not in reference.strip(":"):
        raise UsageError(
            f"--arch {reference!r} names no builder",
            "pass torchvision:NAME, timm:NAME, path/to/net.py:factory or package.mod:factory"
            + _builder_hint(reference),
        )
    return Architecture(reference, tuple(_argument(word) for item in args for word in _words(item)))


def _builder_hint(reference: str) -> str:
    import torchvision

    known = reference in torchvision.models.list_models()
    return f" (did you mean torchvision:{reference}?)" if known else ""


def _words(item: str) -> list[str]:
    """Split `a=1,b=2` at commas outside brackets and quotes, so that one flag may carry several arguments."""
    words, depth, quote, current = [], 0, "", ""
    for letter in item:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0 and not quote:
            words.append(current)
            current = ""
        else:
            current += letter
    return [word.strip() for word in [*words, current] if word.strip()]


def _argument(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not equals or not name.strip().isidentifier():
        raise UsageError(f"--arch-args {word!r} is not NAME=VALUE", "pass for example --arch-args num_classes=10")
    text = text.strip()
    special: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text.lower() in special:
        return name.strip(), special[text.lower()]
    try:
        return name.strip(), ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name.strip(), text


def build(architecture: Architecture, *, meta: bool = False, search_from: Path | None = None) -> nn.Module:
    """Build the network with fresh weights; `meta` builds it with parameters that have shapes but no memory.

    `search_from`: folder in (and above) which a relative file reference is looked for after the current one.

    Raises:
        InputError: the builder is unknown, fails, wants to download, or returns something else than a module.
    """
    factory = _factory(architecture.reference, search_from)
    arguments = {**dict(architecture.args), **_no_download(architecture.reference, factory)}
    with _user_code():
        module = (_call_on_meta if meta else factories.call)(factory, arguments, architecture.reference)
    if isinstance(module, nn.Module):
        return module
    raise InputError(
        f"{architecture.reference} returned a {type(module).__name__}, not an nn.Module",
        "let the factory return the network itself",
    )


def build_uninitialised(architecture: Architecture, search_from: Path | None = None) -> nn.Module:
    """Build the network without spending time on initial values where that is known to be safe (torchvision).

    Parameters are created on the meta device and then given memory without values; buffers and everything else that a
    constructor computes stay real. The caller must load every parameter.
    """
    if not architecture.reference.startswith("torchvision:"):
        return build(architecture, search_from=search_from)
    try:
        with _meta_parameters():
            module = build(architecture)
    except InputError:  # a constructor that runs its own network (SSDlite), or wrong arguments: the real build tells
        return build(architecture)
    return _with_memory(module)


def _call_on_meta(factory: Callable[..., Any], arguments: Mapping[str, Any], reference: str) -> Any:
    """Call a factory on the meta device; one that computes with tensors there (RegNet) gets meta parameters only."""
    try:
        with torch.device("meta"):
            return factories.call(factory, arguments, reference)
    except InputError:
        with _meta_parameters():
            return factories.call(factory, arguments, reference)


@contextlib.contextmanager
def _meta_parameters() -> Iterator[None]:
    """Move each parameter to the meta device as it is registered, before values are drawn: memory is never touched.

    Unlike `with torch.device("meta")`, whatever else a constructor computes with tensors works (RegNet's widths).
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _with_memory(module: nn.Module) -> nn.Module:
    """Give meta parameters memory; one that several layers share stays one."""
    made: dict[int, nn.Parameter] = {}
    for layer in module.modules():
        for name, param in layer._parameters.items():
            if param is not None and param.is_meta:
                new = nn.Parameter(torch.empty_like(param, device="cpu"), requires_grad=param.requires_grad)
                layer._parameters[name] = made.setdefault(id(param), new)
    return module


@contextlib.contextmanager
def _user_code() -> Iterator[None]:
    """Keep what builders print off stdout, which belongs to the result, and the warnings of old ones quiet."""
    import warnings

    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _factory(reference: str, search_from: Path | None) -> Callable[..., Any]:
    source, _, name = reference.rpartition(":")
    if source == "torchvision":
        return _torchvision_builder(name)
    if source == "timm":
        return _timm_builder(name)
    with _user_code():
        module = (
            factories.import_file(source, search_from) if is_file_reference(source) else factories.import_module(source)
        )
    found = getattr(module, name, None)
    if isinstance(found, nn.Module):
        return lambda: copy.deepcopy(found)
    if callable(found):
        factory: Callable[..., Any] = found
        return factory
    raise factories.missing_factory(module, source, name)


def is_file_reference(source: str) -> bool:
    """Whether the part before the colon is a Python file's path rather than a module's dotted name."""
    return source.endswith(".py") or "/" in source or "\\" in source


def _torchvision_builder(name: str) -> Callable[..., Any]:
    import torchvision

    try:
        builder: Callable[..., Any] = torchvision.models.get_model_builder(name)
    except ValueError as error:
        raise _unknown_name("torchvision", name, torchvision.models.list_models()) from error
    return builder


def _timm_builder(name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"timm:{name} needs timm, which is not installed", "pip install timm") from error
    if not timm.is_model(name):
        raise _unknown_name("timm", name, timm.list_models())
    return lambda **arguments: timm.create_model(name, **arguments)


def _unknown_name(source: str, name: str, known: list[str]) -> InputError:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    fix = f"did you mean {', '.join(f'{source}:{item}' for item in close)}?" if close else "check the name"
    return InputError(f"{source} has no model {name!r}", fix)


def _no_download(reference: str, factory: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that keep a library's builder from fetching weights, and from slow initial values."""
    if reference.startswith("timm:"):
        return {"pretrained": False}
    if not reference.startswith("torchvision:"):
        return {}
    known = inspect.signature(factory).parameters
    arguments: dict[str, Any] = {name: None for name in ("weights", "weights_backbone") if name in known}
    if reference.partition(":")[2] in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False  # the default warns, and draws from a slow truncated normal
    return arguments
