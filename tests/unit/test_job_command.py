"""The command that a page shows for a job does what the job does, and all fields of a job are set in the same way."""

from __future__ import annotations

import json
import re
import shlex
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from qtune_service import config
from qtune_service.cli import app
from qtune_service.cli.job_flags import body_of, spec_of
from qtune_service.config import JobSpec, PruneSpec
from qtune_service.job_fields import JobField, in_terminal, job_command, job_fields, on_page
from qtune_service.server.form import form_fields
from tests.jobs import REPO

PLAIN: dict[str, Any] = {"input": {"paths": ["a.jsonl"]}, "model": {"name": "m"}, "output": {"path": "out"}}


def spec(**parts: Any) -> JobSpec:
    """Return a job. Parts are merged into a plain one."""
    return JobSpec.model_validate({name: {**PLAIN.get(name, {}), **parts.get(name, {})} for name in {*PLAIN, *parts}})


def parsed(command: str) -> JobSpec:
    """Parse a command into a job."""
    words = shlex.split(command)
    found = typer.main.get_command(app).commands[words[1]].make_context(words[1], words[2:]).params  # type: ignore[attr-defined]
    names = {(field.option or "--")[2:].replace("-", "_"): path for path, field in job_fields().items()}
    given = {names[name]: value for name, value in found.items() if name in names and value not in (None, [], ())}
    return spec_of(given, **({} if words[1] == "prune" else {"prune": None}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "input": {
                "paths": ["it's $HOME/*.jsonl", "-b.jsonl"],
                "take": {"a b=c": 3, "d": 0},
                "category_field": "c",
                "limit": 7,
            }
        },
        {"input": {"prompt_column": "q", "completion_column": "-a", "category_field": "--x", "overlong": "truncate"}},
        {"model": {"name": "-m", "dtype": "float32", "max_model_len": 9, "trust_remote_code": True, "revision": "r"}},
        {"engine": {"name": "vllm", "num_actors": "2-5", "enable_prefix_caching": False, "gpus_per_actor": 0.5}},
        {"engine": {"num_actors": 3}, "limits": {"max_rejected_ratio": 0.25, "max_failed_shards": 2}},
        {"prune": {"sample_keep_ratio": 0.125, "strategy": "longest", "strategy_order": "lowest", "seed": 5}},
    ],
)
def test_flags_give_the_same_job(changes: dict[str, Any]) -> None:
    """Parsed again, whatever the values look like."""
    wanted = spec(**changes)
    assert parsed(job_command(wanted)) == wanted


def values(path: str) -> st.SearchStrategy[Any]:
    """Return any values of a field, within its limits, that a shell can pass."""
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
    special: dict[str, st.SearchStrategy[Any]] = {
        "input.paths": st.lists(text, min_size=1, max_size=3),
        "input.take": st.dictionaries(text, st.integers(0, 10**12), max_size=3),
        "engine.name": st.sampled_from(["auto", "vllm", "reference", "my.module:make"]),
        "engine.num_actors": st.tuples(st.integers(1, 50), st.integers(50, 10_000)),
        "engine.vllm": st.sampled_from([{}, {"quantization": "fp8", "cpu_offload_gb": 1.5, "hf_overrides": {"a": 1}}]),
        "model.name": text.filter(bool),
        "output.path": text.filter(bool),
    }
    field = job_fields()[path]
    if path in special:
        return special[path]
    if field.choices:
        return st.sampled_from(field.choices)
    kind: Any = Annotated[field.info.annotation, *field.info.metadata]
    schema = TypeAdapter(kind).json_schema()
    body = next(option for option in schema.get("anyOf", [schema]) if option["type"] != "null")
    low, high = body.get("minimum", body.get("exclusiveMinimum")), body.get("maximum")
    if body["type"] == "integer":
        return st.integers(low, high)
    if body["type"] == "number":
        return st.floats(low, high, exclude_min="exclusiveMinimum" in body)
    return st.booleans() if body["type"] == "boolean" else text


@st.composite
def specs(draw: st.DrawFn) -> JobSpec:
    """Draw a job with some fields other than their defaults; without scores of another job."""
    may_need_a_file = draw(st.integers(0, 3)) == 0
    fields = [field for field in job_fields().values() if field.path != "from_scores"]
    paths = [field.path for field in fields if may_need_a_file or field.flag is not None]
    chosen = draw(st.sets(st.sampled_from(paths), max_size=12)) | {"input.paths", "model.name", "output.path"}
    body: dict[str, Any] = {}
    for path in [path for path in paths if path in chosen]:
        part, _, name = path.partition(".")
        body.setdefault(part, {})[name] = draw(values(path))
    if draw(st.booleans()):
        body["prune"] = None
    try:
        return JobSpec.model_validate(body)
    except ValidationError:  # fields that cannot be combined
        body.get("engine", {}).pop("vllm", None)
        return JobSpec.model_validate({**body, "input": {"paths": body["input"]["paths"]}, "prune": PruneSpec()})


@settings(deadline=None, max_examples=150)
@given(specs())
def test_the_command_of_any_job_gives_the_job(wanted: JobSpec) -> None:
    """Parsed again, its flags or its job file are the same spec."""
    command = job_command(wanted)
    if command.startswith("cat > job.json"):
        has_file_only_field = any(
            field.flag is None and changed(wanted, field) for field in job_fields().values()
        )  # fmt: skip
        assert has_file_only_field or "" in wanted.input.take
        assert JobSpec.model_validate_json(command.splitlines()[1]) == wanted
    else:
        assert parsed(command) == wanted


def changed(job: JobSpec, field: JobField) -> bool:
    """Return whether a job sets a field to something else than its default."""
    part, _, name = field.path.rpartition(".")
    owner = getattr(job, part) if part else job
    return owner is not None and getattr(owner, name) != field.default


def test_scoring_has_a_command_of_its_own() -> None:
    """`qtune score`."""
    wanted = JobSpec.model_validate({**PLAIN, "prune": None})
    assert job_command(wanted).startswith("qtune score ")
    assert parsed(job_command(wanted)) == wanted


def test_a_field_without_a_flag_comes_in_a_file() -> None:
    """The text between the markers is the job."""
    wanted = spec(engine={"logits_bytes": 1 << 21}, input={"paths": ["END_OF_JOB\nEND_OF_JOB"]})
    first, text, end, last = job_command(wanted).splitlines()
    assert (first, end, last) == ("cat > job.json <<'END_OF_JOB'", "END_OF_JOB", "qtune run job.json")
    assert JobSpec.model_validate(json.loads(text)) == wanted


def test_pruning_again_names_the_scores_and_the_method() -> None:
    """And no data or model, which come with the scores."""
    again = JobSpec.model_validate({**PLAIN, "from_scores": "old dir", "prune": {"sample_keep_ratio": 0.25}})
    command = job_command(again)
    assert command == "qtune prune --from-scores 'old dir' --output out --sample-keep-ratio 0.25"


def test_every_field_has_a_flag_or_is_of_job_files_only() -> None:
    """The one place that says so is the field itself; `qtune prune` has exactly these flags, and its own two."""
    params = typer.main.get_command(app).commands["prune"].params  # type: ignore[attr-defined]
    options = {option for param in params for option in (*param.opts, *param.secondary_opts) if option[:1] == "-"}
    wanted = {"--ray-address", "--overwrite"}
    for field in job_fields().values():
        assert field.help, f"{field.path} has no help"
        assert (field.option is None) == (field.flag is None), field.path
        if field.flag is not None and not field.is_argument:
            wanted |= {name for name in (field.option, field.negative, field.flag.short) if name}
    assert options == wanted
    assert {field.path for field in job_fields().values() if field.flag is None} == {
        *("engine.cpus_per_actor", "engine.logits_bytes", "engine.head_kernel", "engine.gpu_memory_utilization"),
        *("engine.cpu_kv_cache_bytes", "engine.vllm", "limits.stall_s", "limits.stop_grace_s"),
    }


def test_the_walk_finds_every_field_of_every_part() -> None:
    """Also those of parts that are added later; a field that says nothing about its flag is refused."""
    parts = [kind for kind in vars(config).values() if isinstance(kind, type) and issubclass(kind, BaseModel)]
    names = {name for kind in parts if kind.__module__ == config.__name__ for name in kind.model_fields}
    walked = {field.name for field in job_fields().values()} | {path.partition(".")[0] for path in job_fields()}
    assert names == walked

    class Silent(BaseModel):
        limit: Annotated[int, Field(ge=1)] = 1

    from qtune_service.job_fields import _walk

    with pytest.raises(TypeError, match=r"job\.limit needs either a Flag or JOB_FILE_ONLY"):
        list(_walk(Silent, "job."))


def test_the_form_and_the_reference_list_the_same_fields() -> None:
    """A request has a name as well, and no scores of a folder on the server."""
    assert set(form_fields()) - {"name"} == set(job_fields()) - {"from_scores"}
    page = REPO / "docs/reference/job-file.md"
    listed, part = set(), ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            part = "" if line == "## Top level" else f"{line[3:]}."
        elif match := re.match(r"\| `(\w+)` \|", line):
            listed.add(part + match[1])
    assert listed == set(job_fields())


def test_texts_name_fields_as_people_see_them() -> None:
    """As flags in the terminal, and as labels on the page; other words in backticks stay words."""
    text = "`take` needs `category_field`, not `magic`"
    assert in_terminal(text) == "--take needs --category-field, not magic"
    assert on_page(text) == "“Take” needs “Category field”, not `magic`"


def test_repeated_categories_are_numbers() -> None:
    """As `--take` takes them."""
    assert body_of({"input.take": ["a=1", "b=c=2"]}) == {"input": {"take": {"a": 1, "b=c": 2}}}
