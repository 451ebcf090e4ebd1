"""Shell patterns over layer names: `*` crosses dots, and a module's name stands for all layers in it."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from decomposers.errors import NoMatch


def scopes(name: str) -> list[str]:
    """Return a layer's name and those of the modules around it: `a.b.c` -> `a.b.c`, `a.b`, `a`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def matches(pattern: str, names: Sequence[str]) -> bool:
    """Tell whether a pattern fits one of a layer's names or a module that holds it."""
    return any(fnmatchcase(scope, pattern) for name in names for scope in scopes(name))


def check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Make sure that every pattern matches a layer.

    Raises:
        NoMatch: with the names closest to the pattern.
    """
    for pattern in patterns:
        if not matches(pattern, names):
            known = list(dict.fromkeys(scope for name in names for scope in scopes(name)))
            close = get_close_matches(pattern.strip("*?."), known, n=3, cutoff=0.5)
            raise NoMatch(pattern, tuple(close))
