"""Shell patterns over tensor names: `*` crosses dots, and a module's name stands for all that is in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from pruners.errors import NoMatch


def scopes(name: str) -> list[str]:
    """Return a tensor's name and those of the modules around it: `a.b.weight` -> `a.b.weight`, `a.b`, `a`."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def matches(pattern: str, name: str) -> bool:
    """Tell whether a pattern fits a tensor or a module that holds it."""
    return any(fnmatchcase(scope, pattern) for scope in scopes(name))


def check_patterns(patterns: Sequence[str], names: Sequence[str], others: Sequence[str] = ()) -> None:
    """Make sure that every pattern matches one of `names`.

    Args:
        patterns: shell patterns as the user gave them.
        names: tensor names to match.
        others: names that exist but do not count; a pattern that only matches those gets its own message.

    Raises:
        NoMatch: with the names closest to the pattern.
    """
    for pattern in patterns:
        if any(matches(pattern, name) for name in names):
            continue
        if any(matches(pattern, name) for name in others):
            raise NoMatch(pattern, why="matches only tensors that are not ranked")
        raise NoMatch(pattern, close_names(pattern, (*names, *others)))


def close_names(pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return up to three tensor or module names that look like a pattern, best first."""
    known = list(dict.fromkeys(scope for name in names for scope in scopes(name)))
    return tuple(get_close_matches(pattern.strip("*?."), known, n=3, cutoff=0.5))
