"""`RunConfig`: everything a run was asked for, resolved from flag > compress.toml > default.

Field names are the flag names with underscores; the same names are the keys of `compress.toml` (with dashes or
underscores) and of `[tool.compress]` in `pyproject.toml`.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from compress_cli.errors import UsageError
from compress_cli.methods import METHODS
from compress_cli.quantities import LIMIT_KINDS, Limit, parse_limit
from compress_cli.version import __version__
from compress_cli.weight_forms import WEIGHTS, check_known

Scope = Literal["global", "layer", "isomorphic"]
Score = Literal["magnitude", "lamp", "erk", "l1", "bn", "fpgm", "taylor", "fisher", "measured", "recovery"]
RECOVERY_SCORE = "recovery"
"""What removal costs after recovery from the images of --calib."""
Search = Literal["path", "sweep"]
Schedule = Literal["one-shot", "gradual", "st3", "acdc"]


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One run, fully resolved. Saved as `config.json`; `--resume` reads it back."""

    verb: str
    checkpoint: str
    output: str | None = None
    method: str = "magnitude"
    sparsity: str | None = None
    scope: Scope = "global"
    score: Score | None = None
    floor: str = "0.02%"
    schedule: Schedule = "one-shot"
    objective: str | None = None
    error: str | None = None
    schemes: str | None = None
    max_groups: int | None = None
    linear_groups: bool | None = None
    max_loss_rise: str | None = None
    search: Search = "path"
    reference: bool = False
    rounds: int | None = None
    round_to: int = 1
    min_channels: str = "5%"
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    arch: str | None = None
    arch_args: tuple[str, ...] = ()
    input_shape: str | None = None
    input: tuple[str, ...] = ()
    trust_pickle: bool = False
    data: str | None = None
    task: str | None = None
    calib: str | None = None
    calib_samples: int = 1024
    preprocess: str | None = None
    mean: str | None = None
    std: str | None = None
    resize: int | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    weight_decay: float | None = None
    distill: bool = False
    teacher: str | None = None
    recipe: tuple[str, ...] = ()
    compile: bool = False
    tensorboard: str | None = None
    weights: str = "auto"
    safetensors: bool = False
    max_params: str | None = None
    max_flops: str | None = None
    max_size: str | None = None
    max_drop: str | None = None
    max_latency: str | None = None
    exit_zero: bool = False
    device: str = "auto"
    threads: int = 1
    seed: int = 0
    bench: bool = True
    export: bool = True
    version: str = __version__

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> RunConfig:
        """Read a saved `config.json`; keys of other versions are dropped."""
        known = {f.name: f for f in fields(cls)}
        found = {name: value for name, value in document.items() if name in known}
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
        return cls(**values)

    def limits(self) -> tuple[Limit, ...]:
        """The gates that were asked for."""
        asked = {name: getattr(self, name.replace("-", "_")) for name in LIMIT_KINDS}
        return tuple(
            parse_limit(f"--{name}", LIMIT_KINDS[name], text) for name, text in asked.items() if text is not None
        )


def resolve(verb: str, checkpoint: str, flags: Mapping[str, Any], config_file: Path | None = None) -> RunConfig:
    """Merge flags (those that are not None) over the configuration file over the defaults.

    Raises:
        UsageError: an unknown key or a wrong value, with the closest valid ones.
    """
    merged = _from_file(config_file)
    merged.update({name: value for name, value in flags.items() if value is not None and value != []})
    hints = typing.get_type_hints(RunConfig)
    values = {name: _coerce(name, value, hints[name]) for name, value in merged.items()}
    config = RunConfig(**{**values, "verb": verb, "checkpoint": checkpoint})
    _check(config)
    return config


def with_settings(config: RunConfig, settings: Mapping[str, str], where: str) -> RunConfig:
    """The configuration with settings given as text (a step of `compress combine`); `where` is named in errors.

    Raises:
        UsageError: an unknown name, or a value that does not fit.
    """
    fixed = {"verb", "checkpoint", "version", "method", "output"}
    _known_keys(settings, where, {f.name for f in fields(RunConfig)} - fixed)
    hints = typing.get_type_hints(RunConfig)
    values = {}
    for name, text in settings.items():
        values[name] = _coerce(name, _parsed(name, text, hints[name], where), hints[name])
    changed = dataclasses.replace(config, **values)
    _check(changed)
    return changed


def _parsed(name: str, text: str, hint: Any, where: str) -> Any:
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    try:
        if bool in kinds:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return int(text) if int in kinds else float(text) if float in kinds else text
    except (ValueError, KeyError) as error:
        raise UsageError(f"{where}: {name.replace('_', '-')}={text!r} cannot be read", "check the value") from error


def _check(config: RunConfig) -> None:
    check_known("--weights", config.weights, WEIGHTS)
    if config.method not in METHODS:
        close = difflib.get_close_matches(config.method, list(METHODS), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UsageError(f"--method {config.method!r} is unknown", f"valid: {', '.join(METHODS)}{hint}")
    for name, least in (
        ("epochs", 0),
        ("threads", 1),
        ("batch_size", 1),
        ("calib_samples", 0),
        ("seed", 0),
        ("max_groups", 1),
        ("rounds", 1),
        ("round_to", 1),
        ("resize", 1),
    ):
        value = getattr(config, name)
        if value is not None and value < least:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} {value} is below {least}", f"pass {flag} {least} or more")
    if config.lr is not None and not 0 < config.lr < 1e6:
        raise UsageError(f"--lr {config.lr} is not a learning rate", "pass a positive number such as --lr 0.02")
    if config.data and config.task:
        raise UsageError("--data and --task were both given", "a task file brings its own data: drop --data")
    if config.method != "pagcp":
        for name in ("max_loss_rise", "reference", "rounds"):
            if getattr(config, name):
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} is for --method pagcp", f"add --method pagcp, or drop {flag}")
    if config.recipe:
        from compress_cli.training.words import parse_recipe

        parse_recipe(config.recipe)
    if config.tensorboard is not None:
        from compress_cli.training.telemetry import check_tensorboard

        check_tensorboard(config.tensorboard)
    config.limits()


def _from_file(explicit: Path | None) -> dict[str, Any]:
    path = explicit or _default_file()
    settable = {f.name for f in fields(RunConfig)} - {"verb", "checkpoint", "version"}
    return {} if path is None else _known_keys(_table(path), path, settable)


def gates_table(explicit: Path | None = None) -> tuple[dict[str, Any], str]:
    """The `gates` table of the configuration file and where it is; empty when there is none.

    Raises:
        UsageError: the file cannot be read.
    """
    path = explicit or _default_file()
    table = {} if path is None else _table(path).get("gates", {})
    return dict(table), f"{path} [gates]"


def _table(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", "correct the file") from error
    table: dict[str, Any] = document.get("tool", {}).get("compress", {}) if path.name == "pyproject.toml" else document
    return table


def _default_file() -> Path | None:
    if Path("compress.toml").is_file():
        return Path("compress.toml")
    pyproject = Path("pyproject.toml")
    if pyproject.is_file() and "[tool.compress" in pyproject.read_text(encoding="utf-8", errors="replace"):
        return pyproject
    return None


def _known_keys(table: Mapping[str, Any], path: Path | str, settable: set[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in ("gates", "targets"):  # read by `compress check` and by compress_cli.targets
            continue
        if name not in settable:
            close = difflib.get_close_matches(name, sorted(settable), n=3)
            valid = ", ".join(item.replace("_", "-") for item in (close or sorted(settable)))
            raise UsageError(f"unknown key {key!r} in {path}", f"{'did you mean' if close else 'valid keys'}: {valid}")
        values[name] = value
    return values


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Fit a value from a flag or TOML to the field's type: numbers to text where text is kept, lists to tuples."""
    flag = "--" + name.replace("_", "-")
    if type(None) in get_args(hint):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            valid = ", ".join(map(str, get_args(hint)))
            close = difflib.get_close_matches(str(value), [str(item) for item in get_args(hint)], n=1)
            raise UsageError(
                f"{flag} {value!r} is unknown",
                f"valid: {valid}" + (f" (did you mean {close[0]}?)" if close else ""),
            )
        return value
    if get_origin(hint) is tuple:
        return tuple(str(item) for item in (value if isinstance(value, (list, tuple)) else [value]))
    wanted = hint
    if wanted is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise UsageError(f"{flag} has the value {value!r}", f"it must be a {wanted.__name__}")
    return value
