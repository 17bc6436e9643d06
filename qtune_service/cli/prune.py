"""`qtune prune`, `score` and `run`: build a JobSpec, run the job, and show its result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from qtune_service.cli.commands import command
from qtune_service.cli.console import exit_codes, quiet, show
from qtune_service.cli.job_flags import Given, body_of, spec_of, takes_job_fields, with_flag
from qtune_service.config import FlagGroup, JobSpec, PruneSpec
from qtune_service.errors import SpecError
from qtune_service.spec_files import as_it_ran, load_spec, pruned_again

app = typer.Typer()
OverwriteOpt = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Remove an earlier output in OUTPUT and start from scratch.",
        rich_help_panel=FlagGroup.failures.value,
    ),
]
RayOpt = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="ADDRESS",
        envvar="RAY_ADDRESS",
        help="A running Ray cluster. By default this machine alone.",
        rich_help_panel=FlagGroup.run.value,
        show_default=False,
    ),
]
ALL = with_flag()
SCORING = [path for path in ALL if not path.startswith("prune.") and path != "from_scores"]
USAGE = "--model MODEL -o OUTPUT [OPTIONS]"
PRUNE_EXAMPLES = """\
qtune prune chats.jsonl --model ./my-model -o out
qtune prune 'data/*.parquet' --model org/base -o out --sample-keep-ratio 0.25
qtune prune --from-scores out -o out-eighth --sample-keep-ratio 0.125"""
SCORE_EXAMPLES = """\
qtune score chats.jsonl --model ./my-model -o scores
qtune score 'data/*.parquet' --model org/base -o scores --num-actors 1-8
qtune prune --from-scores scores -o out --sample-keep-ratio 0.25"""
RUN_EXAMPLES = """\
qtune run job.toml
qtune run job.json --overwrite
qtune run env:QTUNE_JOB"""


@command(app, usage=USAGE, examples=PRUNE_EXAMPLES)
@takes_job_fields(ALL, required=["output.path"])
def prune(given: Given, ray_address: RayOpt = None, overwrite: OverwriteOpt = False) -> None:
    """Score a dataset, find the thresholds, and write the pruned dataset."""
    with exit_codes():
        _run(_spec_from_scores(given) if "from_scores" in given else _spec(given), ray_address, overwrite=overwrite)


@command(app, usage=USAGE, examples=SCORE_EXAMPLES)
@takes_job_fields(SCORING, required=["input.paths", "model.name", "output.path"])
def score(given: Given, ray_address: RayOpt = None, overwrite: OverwriteOpt = False) -> None:
    """Score a dataset without pruning it. Prune later, any number of times, with `qtune prune --from-scores`."""
    with exit_codes():
        _run(spec_of(given, prune=None), ray_address, overwrite=overwrite)


@command(app, examples=RUN_EXAMPLES)
def run(
    spec: Annotated[
        str, typer.Argument(help="Job file, .toml or .json; or env:NAME, an environment variable that holds JSON.")
    ],
    ray_address: RayOpt = None,
    overwrite: OverwriteOpt = False,
) -> None:
    """Run a job file. The same command continues a stopped job."""
    with exit_codes():
        _run(_spec_at(spec), ray_address, overwrite=overwrite)


def _spec(given: Given) -> JobSpec:
    if "input.paths" not in given:
        raise SpecError("no data given", "qtune prune DATA... --model MODEL --output OUTPUT")
    if "model.name" not in given:
        raise SpecError("no model given", "Add --model, a folder or hub id of the model that you are about to train.")
    return spec_of(given)


def _spec_from_scores(given: Given) -> JobSpec:
    """Return the spec of the earlier output with this command's output and settings of the pruning.

    Settings that are not given stay as they were. Other flags have no effect.
    """
    from qtune_service.output.layout import Output

    if "input.paths" in given or "model.name" in given:
        raise SpecError(
            "--from-scores takes the data and the model from the earlier output", "Leave DATA and --model out."
        )
    own = body_of({path: value for path, value in given.items() if path.split(".")[0] in ("prune", "output")})
    earlier = as_it_ran(Output(given["from_scores"]).require_manifest()["spec"])
    stated = own.pop("prune", {})
    prune = pruned_again(earlier, stated)
    changed = {
        name: value for name, value in prune.items() if name not in stated and value != getattr(PruneSpec(), name)
    }
    if changed:
        settings = ", ".join(f"{name} {json.dumps(value)}" for name, value in changed.items())
        typer.echo(f"as in {given['from_scores']}: {settings}", err=True)
    return spec_of({}, **{**earlier, **own, "prune": prune, "from_scores": given["from_scores"]})


def _spec_at(place: str) -> JobSpec:
    """Return the spec of a job file, or of an environment variable, as the service passes it."""
    if not place.startswith("env:"):
        return load_spec(Path(place))
    from qtune_service.spec_files import unpack_spec

    name = place.removeprefix("env:")
    if (text := os.environ.get(name)) is None:
        raise SpecError(f"there is no environment variable {name!r}", "env:NAME is a variable that holds a job spec.")
    return unpack_spec(text, place)


def _run(spec: JobSpec, ray_address: str | None, *, overwrite: bool) -> None:
    from qtune_service.importing import import_transformers_without_torch
    from qtune_service.pipeline.progress import PlainSink, TerminalSink
    from qtune_service.pipeline.ray_executor import RayExecutor
    from qtune_service.pipeline.run import run_job
    from qtune_service.pipeline.shutdown import Stop

    stop = Stop()
    stop.install()
    if not spec.model.trust_remote_code:  # a tokenizer with code of its own may need torch
        import_transformers_without_torch()
    with quiet() as console:
        sink = TerminalSink(console) if console.is_terminal else PlainSink(console)
        try:
            manifest = run_job(spec, sink, executor=RayExecutor(ray_address), overwrite=overwrite, stop=stop)
        finally:
            sink.close()
    show(manifest, spec.output.path)
