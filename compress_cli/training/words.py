"""`--recipe NAME=VALUE`: the parts of a training recipe that have no flag of their own."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from compress_cli.errors import UsageError
from compress_cli.training.recipe import Recipe

OWN_FLAGS = {"epochs", "lr", "batch_size", "weight_decay", "seed", "reasons"}


def parse_recipe(words: Iterable[str]) -> dict[str, Any]:
    """Fields of `Recipe` from `NAME=VALUE` words.

    Example: `parse_recipe(["ema=0.999", "curve=cosine"])` is {"ema": 0.999, "curve": "cosine"}.

    Raises:
        UsageError: unknown names, or values of the wrong kind.
    """
    hints = typing.get_type_hints(Recipe)
    known = [name for name in hints if name not in OWN_FLAGS]
    found: dict[str, Any] = {}
    for word in (part for item in words for part in item.split(",") if part.strip()):
        name, equals, text = word.strip().partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            listed = ", ".join(close or known)
            flag = f"; it has its own flag --{name.replace('_', '-')}" if name in OWN_FLAGS else ""
            raise UsageError(
                f"--recipe {word!r} is not NAME=VALUE with a known name{flag}",
                f"{'did you mean' if close else 'names'}: {listed}",
            )
        found[name] = _value(name, text.strip(), hints[name])
    return found


def _value(name: str, text: str, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise UsageError(f"--recipe {name}={text} is unknown", f"valid: {', '.join(get_args(hint))}")
        return text
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    if bool in kinds:
        if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
            raise UsageError(f"--recipe {name}={text} is neither true nor false", f"pass {name}=true")
        return text.lower() in ("true", "yes", "1")
    try:
        value = int(text) if kinds[0] is int else float(text)
    except ValueError as error:
        raise UsageError(f"--recipe {name}={text} is not a number", f"pass for example {name}=1") from error
    low, high = _RANGES.get(name, (0.0, float("inf")))
    if not low <= value <= high:
        raise UsageError(f"--recipe {name}={text} is out of range", f"{name} goes from {low:g} to {high:g}")
    return value


_RANGES = {
    "ema": (0.0, 0.999999),
    "momentum": (0.0, 0.9999),
    "distill": (0.0, 1.0),
    "label_smoothing": (0.0, 0.999),
    "warmup": (0.0, 1.0),
    "accumulate": (1.0, 1e6),
    "temperature": (1e-3, 1e3),
    "clip_norm": (1e-9, float("inf")),
}
