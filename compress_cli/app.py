"""The command line: a table of verbs loaded on first use, and the one place where errors become exit codes.

Nothing here imports torch: `compress --help` and shell completion must answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from compress_cli.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, CompressError
from compress_cli.version import __version__

VERBS: dict[str, tuple[str, str]] = {
    "prune": ("compress_cli.commands.prune:prune", "Zero the smallest weights, fine-tune, export, measure."),
    "decompose": ("compress_cli.commands.decompose:decompose", "Two thinner layers for one (ALDS), under a budget."),
    "combine": ("compress_cli.commands.combine:combine", "Several methods one after the other, in one run."),
    "recover": ("compress_cli.commands.recover:recover", "Closed-form recovery from unlabelled images."),
    "finetune": ("compress_cli.commands.finetune:finetune", "Train a compressed model on; zeros stay zero."),
    "export": ("compress_cli.commands.export:export", "Write a model as a verified ONNX file."),
    "check": ("compress_cli.commands.check:check", "Compare a run or an ONNX file with limits; for CI."),
    "report": ("compress_cli.commands.report:report", "A finished run as text, JSON, Markdown or HTML."),
    "sweep": ("compress_cli.commands.sweep:sweep", "Several methods at several budgets, and the best of them."),
    "inspect": ("compress_cli.commands.inspect:inspect", "What is in a checkpoint or a run folder."),
    "plan": ("compress_cli.commands.plan:plan", "Dry run: what would change, layer by layer."),
    "unpack": (
        "compress_cli.commands.unpack:unpack",
        "Expand a packed ONNX file to a plain one, bit for bit.",
    ),
    "demo": ("compress_cli.commands.demo:demo", "Train a small net on real digits and compress it."),
    "bench": ("compress_cli.commands.bench:bench", "Latency of one or two ONNX files, per target."),
    "devices": ("compress_cli.commands.devices:devices", "Phones and boards that latency can be predicted for."),
    "doctor": ("compress_cli.commands.doctor:doctor", "Versions, devices, optional runtimes."),
}
"""verb -> (module:function, one-line help); the module is imported when the verb is used."""

EPILOG = """Examples:

compress prune model.pt --sparsity 0.9

compress prune net.th --arch nets.py:resnet56 --input-shape 3x32x32 --sparsity 0.9 --data DIR --epochs 1

compress inspect model.pt

Exit codes: 0 done, 1 a gate failed, 2 usage, 3 unreadable or unsupported input, 4 a proof failed, 70 a bug,
130 interrupted."""


class LazyGroup(TyperGroup):
    """A command group that lists its verbs from `VERBS` and imports a verb's module only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the verbs in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stub that is enough for listings; `resolve_command` replaces it by the real verb."""
        if cmd_name not in VERBS:
            return None
        return TyperCommand(name=cmd_name, help=VERBS[cmd_name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Import the verb that is about to run."""
        self.commands = {name: self.get_command(ctx, name) for name in VERBS}  # for "Did you mean"
        name, stub, rest = super().resolve_command(ctx, args)
        return name, (load_verb(name) if name and stub is not None else stub), rest


def load_verb(name: str) -> Any:
    """The real command of a verb, with its options."""
    module_name, function = VERBS[name][0].split(":")
    module = importlib.import_module(module_name)
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    single.command(name=name, epilog=getattr(module, "EPILOG", None), context_settings=settings)(
        getattr(module, function)
    )
    return typer.main.get_command(single)


def _show_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"compress {__version__}\n")
        raise typer.Exit


def _group() -> Any:
    app = typer.Typer(
        cls=LazyGroup,
        name="compress",
        add_completion=True,
        no_args_is_help=True,
        rich_markup_mode="rich",
        epilog=EPILOG,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
        ] = False,
    ) -> None:
        """Make trained PyTorch vision models small and fast, and prove that they still work."""

    return typer.main.get_command(app)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (design.md section 4)."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    try:
        code = _group().main(args=args, prog_name="compress", standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # the parser turns Ctrl-C into a return value
            raise KeyboardInterrupt
        return code if isinstance(code, int) else EXIT_OK
    except CompressError as error:
        _report_failure(error.message, error.fix, error.exit_code, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        _report_failure("interrupted", "", EXIT_INTERRUPTED, as_json)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: not our failure
        return EXIT_OK
    except SystemExit as stop:  # the parser's answer to a reader that went away
        if isinstance(stop.__context__, BrokenPipeError):
            return EXIT_OK
        raise
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own usage errors
            return _usage_failure(error, as_json)
        return _bug(error, as_json)


def _usage_failure(error: Any, as_json: bool) -> int:
    context = getattr(error, "ctx", None)
    verb = context.command_path if context is not None else "compress"
    message = error.format_message()
    if not message:  # no arguments at all: the help has been shown
        return EXIT_USAGE
    _report_failure(message, f"see {verb} --help", EXIT_USAGE, as_json)
    return EXIT_USAGE


def _bug(error: Exception, as_json: bool) -> int:
    import traceback

    if os.environ.get("COMPRESS_DEBUG"):
        traceback.print_exception(error)
    summary = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    _report_failure(
        f"internal error (a bug in compress): {summary}",
        f"please report it{_bug_log(error)}; COMPRESS_DEBUG=1 prints the traceback",
        EXIT_BUG,
        as_json,
    )
    return EXIT_BUG


def _bug_log(error: Exception) -> str:
    """Write the traceback to a file; ` with FILE`, or nothing where not even that can be written."""
    import tempfile
    import traceback

    try:
        with tempfile.NamedTemporaryFile("w", prefix="compress-bug-", suffix=".log", delete=False) as log:
            traceback.print_exception(error, file=log)
    except OSError:
        return ""
    return f" with {log.name}"


def _report_failure(message: str, fix: str, code: int, as_json: bool) -> None:
    if as_json:
        import json

        document = {
            "schema_version": 1,
            "ok": False,
            "error": {"code": code, "message": message, "fix": fix},
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return
    sys.stderr.write(f"Error: {message}\n")
    if fix:
        sys.stderr.write(f"Fix:   {fix}\n")


def main() -> None:
    """Entry point of the `compress` script."""
    sys.exit(run())
