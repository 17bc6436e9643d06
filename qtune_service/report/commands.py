"""Commands that a reader copies from the page. The page's script puts in what was chosen: a ratio, a sample."""

from __future__ import annotations

import shlex

from qtune_service.config import PruneSpec
from qtune_service.report.choice import prune_spec
from qtune_service.report.data import ReportData

PLACEHOLDER = "OUT"


def output_of(data: ReportData) -> str:
    """Where the job's output is, or a word in its place."""
    return data.output or PLACEHOLDER


def inspect_command(data: ReportData) -> str:
    """Up to the sample's identifier."""
    return f"qtune inspect {shlex.quote(output_of(data))} --sample "


def prune_command(data: ReportData, ratio: float) -> str:
    """For one ratio; the page's script makes the others."""
    start, stem, flags = prune_parts(data)
    number = repr(ratio).removesuffix(".0")  # as a script writes it
    return f"{start}{shlex.quote(stem + number)} --sample-keep-ratio {number}{flags}"


def prune_parts(data: ReportData) -> tuple[str, str, str]:
    """The start up to the new output; that output up to its ratio, unquoted; and the flags after the ratio.

    `qtune prune --from-scores` takes the method's arguments from its flags alone, so those of this job that are not the
    defaults are repeated.
    """
    output = output_of(data)
    start = f"qtune prune --from-scores {shlex.quote(output)} --output "
    return start, f"{output.rstrip('/')}-", "".join(_flags(data))


def _flags(data: ReportData) -> list[str]:
    flags = []
    for name, field in PruneSpec.model_fields.items():
        value = prune_spec(data).get(name, field.default)
        if name != "sample_keep_ratio" and value != field.default:
            flags.append(f" --{name.replace('_', '-')} {shlex.quote(str(value))}")
    return flags
