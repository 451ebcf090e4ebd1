"""Exceptions of the four libraries as the user's errors: the one place where they are translated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from compress_cli.errors import DAMAGED, CompressError, InputError, UnsupportedModelError, UsageError


def _no_match(error: Exception, close: Sequence[str]) -> UsageError:
    """The close names belong into the fix, not into the message as well."""
    fix = f"closest names: {', '.join(close)}" if close else "compress inspect lists the names"
    return UsageError(str(error).partition("; close names:")[0], fix)


@contextmanager
def pruning_errors() -> Iterator[None]:
    """Turn what `pruners` raises about a user's weights or wishes into errors with a fix."""
    from pruners import magnitude as m

    try:
        yield
    except (m.BadSparsity, m.BadFloor) as error:
        raise UsageError(str(error), "pass a share such as --sparsity 0.9 or 90%, at least 0 and below 1") from error
    except m.NoMatch as error:
        raise _no_match(error, error.close_matches) from error
    except m.BadOptions as error:
        raise UsageError(str(error), "compress prune --help lists what goes together") from error
    except m.NothingToPrune as error:
        fix = "compress inspect lists the tensors; check --only and --ignore"
        if any(reason.startswith("element type") for reason in error.reasons):
            fix = f"convert the weights to float32, float16 or bfloat16 first; {fix}"
        raise InputError(str(error), fix) from error
    except m.InfeasibleSparsity as error:
        largest = int(error.largest * 1e6) / 1e6
        raise UsageError(str(error), f"--sparsity {largest:.6f} at most, or a smaller --floor") from error
    except m.LayerCollapse as error:
        fix = "keep some weights in every tensor with --floor, or exclude it with --ignore"
        raise UsageError(str(error), fix) from error
    except m.BadWeights as error:
        raise InputError(str(error), DAMAGED) from error
    except m.PlanMismatch as error:
        raise InputError(str(error), "apply the plan to the checkpoint it was made for") from error


@contextmanager
def channel_errors() -> Iterator[None]:
    """Turn what `pruners.channels` and `pruners.pagcp` raise about a network or a wish into errors with a fix."""
    from compress_cli.errors import VerificationError
    from pruners.channels import errors as c
    from pruners.errors import BadWeights

    try:
        yield
    except c.NoMatch as error:
        raise _no_match(error, error.close_matches) from error
    except BadWeights as error:
        raise InputError(str(error), DAMAGED) from error
    except c.BadChannelOptions as error:
        raise UsageError(str(error), "compress prune --help lists what goes together") from error
    except c.InfeasibleBudget as error:
        share = error.smallest / max(error.dense, 1)
        flag = "--max-flops" if error.quantity == "macs" else "--max-params"
        least = f"{flag} {int(share * 1000 + 1) / 10:g}%"
        raise UsageError(str(error), f"{least}, or a smaller --min-channels or --round-to") from error
    except (c.CannotTrace, c.NothingToRemove, c.SurgeryFailed) as error:
        raise UnsupportedModelError(str(error), "zero weights instead: compress prune FILE --sparsity 0.8") from error
    except (c.ChannelsMismatch, c.BadChannelsPlan) as error:
        raise InputError(str(error), "apply the plan to the checkpoint it was made for") from error
    except c.ProofFailed as error:
        raise VerificationError(
            str(error), "this is a bug in compress: please report it, and leave the layer out with --ignore"
        ) from error


@contextmanager
def decomposition_errors() -> Iterator[None]:
    """Turn what `decomposers` raises about a user's network or wishes into errors with a fix."""
    from decomposers import errors as d

    try:
        yield
    except d.NoMatch as error:
        raise _no_match(error, error.close_matches) from error
    except d.NothingToDecompose as error:
        raise UnsupportedModelError(str(error), "prune it instead: compress prune FILE --sparsity 0.8") from error
    except d.InfeasibleBudget as error:
        raise UsageError(str(error), "allow more, or fewer layers in --ignore") from error
    except d.BadWeights as error:
        raise InputError(str(error), DAMAGED) from error
    except (d.PlanMismatch, d.BadPlan) as error:
        raise InputError(str(error), "apply the plan to the checkpoint it was made for") from error


@contextmanager
def export_errors() -> Iterator[None]:
    """Turn a failed export into an error that says how to go on without one."""
    from exporters.onnx_export import ExportFailed

    try:
        yield
    except ExportFailed as error:
        raise UnsupportedModelError(
            f"the model cannot be exported to ONNX: {error}", "use --no-export to prune without an ONNX file"
        ) from error


@contextmanager
def counting_errors() -> Iterator[None]:
    """Turn a network that does not run on its example inputs into an error that names the flags."""
    from profilers.errors import CountingFailed

    try:
        yield
    except CountingFailed as error:
        raise InputError(
            str(error), "give the shape that the network takes: --input-shape CxHxW, or --input NAME=SHAPE:dtype"
        ) from error


__all__ = [
    "CompressError",
    "channel_errors",
    "counting_errors",
    "decomposition_errors",
    "export_errors",
    "pruning_errors",
]
