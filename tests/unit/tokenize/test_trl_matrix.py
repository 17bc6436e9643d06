"""Masks against an authority: every chat template that the installed TRL ships, by many kinds of conversation.

TRL's training variants mark what is trained, and transformers turns the marks into a mask. Our mask must be the same,
or differ as trl_differences.py lists. Templates without a training variant are checked by their answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtune_service.ingest.records import RecordError
from qtune_service.samples import Sample
from qtune_service.tokenize.chat_template import RENDER_DATE
from qtune_service.tokenize.encoded_batch import Encoded
from qtune_service.tokenize.encoder import Encoder
from qtune_service.tokenize.trl_templates import families, trl_templates
from tests.unit.tokenize.trl_differences import DIFFERENCES, FLAGGED, OTHER_TEXT, REJECTED, Case, Difference, tables
from tests.unit.tokenize.trl_matrix import conversations, encoder_for, family_of, save_family_tokenizer


def trl_version() -> str:
    """Return the version of the installed TRL, or nothing."""
    return version("trl") if trl_templates() else ""


RECORDS = conversations()
pytestmark = pytest.mark.skipif(not trl_templates(), reason="TRL is not installed, and ships the templates")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record: a sample, or the code of its rejection."""

    sample: Sample | None
    code: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Masks:
    """Masks of all kinds of conversation by one template and its training variant."""

    encoder: Encoder
    own: Mapping[str, Outcome]
    marked: Mapping[str, Outcome]
    """By our encoder with TRL's training variant."""
    trl: Mapping[str, Sample]
    """By transformers with TRL's training variant, where it renders."""


def outcomes(encoder: Encoder) -> dict[str, Outcome]:
    """Encode the records of all kinds."""
    found: dict[str, Outcome] = {}
    for kind, item in zip(RECORDS, encoder.encode_batch(list(RECORDS.values()), "messages"), strict=True):
        if isinstance(item, Encoded):
            found[kind] = Outcome(item.sample)
        else:
            found[kind] = Outcome(None, item.reason_code, item.detail)
    return found


def trl_masks(encoder: Encoder, source: str) -> dict[str, Sample]:
    """Return the masks of transformers, with turns in the form that the template takes."""
    masks: dict[str, Sample] = {}
    for kind, record in RECORDS.items():
        try:
            item: Any = encoder._prepare(record, "messages")
        except RecordError:
            continue
        native = [item.template.form.native(message) for message in item.conversation.messages]
        tokens = encoder._tokenizer.apply_chat_template(
            native,
            tools=item.conversation.tools,
            chat_template=source,
            return_assistant_tokens_mask=True,
            return_dict=True,
            strftime_now=RENDER_DATE.strftime,
        )
        masks[kind] = Sample(np.array(tokens["input_ids"], np.int32), np.array(tokens["assistant_masks"], np.int8))
    return masks


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Masks]:
    """Return the masks of every template."""
    found = {}
    for name in families():
        source = trl_templates()[name].read_text(encoding="utf-8")
        variant = trl_templates().get(f"{name}_training")
        marked = variant.read_text(encoding="utf-8") if variant else None
        folder = save_family_tokenizer(tmp_path_factory.mktemp("tokenizer"), name, source + (marked or ""))
        encoder = encoder_for(folder, source)
        if marked is None:
            found[name] = Masks(encoder, outcomes(encoder), {}, {})
            continue
        training = encoder_for(folder, marked)
        found[name] = Masks(encoder, outcomes(encoder), outcomes(training), trl_masks(training, marked))
    return found


def runs(flags: Sequence[bool]) -> Iterator[slice]:
    """Yield the runs of set flags."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(flags, np.int8), [0]))))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield slice(start, stop)


def texts(encoder: Encoder, sample: Sample, flags: Any) -> list[str]:
    """Return the texts of runs of tokens."""
    return [encoder.decode(sample.input_ids[run].tolist()) for run in runs(flags)]


def differences(encoder: Encoder, ours: Sample, theirs: Sample) -> list[tuple[str, str]]:
    """Return the tokens that only one mask trains. Position 0 has no prediction."""
    theirs.loss_mask[:1] = 0
    sides = {"TRL": theirs.loss_mask > ours.loss_mask, "qtune": ours.loss_mask > theirs.loss_mask}
    return [(who, text) for who, flags in sides.items() for text in texts(encoder, ours, flags)]


def test_the_matrix_is_large_enough() -> None:
    """At least 25 kinds of conversation, and every template has a family."""
    assert len(RECORDS) >= 25
    assert all(family_of(name).eos for name in families())


def test_masks_of_training_templates_are_those_of_transformers(masks: Mapping[str, Masks]) -> None:
    """With markers, our mask is the one of transformers, except where a reason is listed."""
    unexplained: list[Any] = []
    for name, found in masks.items():
        for kind, theirs in found.trl.items():
            ours = found.marked[kind].sample
            if ours is None:
                unexplained.append((name, kind, found.marked[kind].code, found.marked[kind].detail))
                continue
            assert ours.input_ids.tolist() == theirs.input_ids.tolist()
            unexplained += unlisted(name, kind, differences(found.encoder, ours, theirs))
    assert unexplained == []


def test_masks_without_markers_are_those_of_training_templates(masks: Mapping[str, Masks]) -> None:
    """Our proof by rendering finds what TRL marks, except where a reason is listed."""
    unexplained: list[Any] = []
    for name, found in masks.items():
        for kind, theirs in found.trl.items():
            ours = found.own[kind].sample
            if ours is None:
                continue  # see the test of rejections
            if ours.input_ids.tolist() == theirs.input_ids.tolist():
                unexplained += unlisted(name, kind, differences(found.encoder, ours, theirs))
            elif not re.fullmatch(FLAGGED, kind):
                cases = [case for case in OTHER_TEXT if case.fits(name, kind)]
                sides = [texts(found.encoder, sample, sample.loss_mask) for sample in (ours, theirs)]
                if not any(common_text(case, sides[0]) == common_text(case, sides[1]) for case in cases):
                    unexplained.append((name, kind, "other text", *sides))
    assert unexplained == []


def common_text(case: Case, spans: Sequence[str]) -> str:
    """Return the trained words without the parts that only one template writes, and without white space."""
    return squeezed("".join(re.sub(case.ignored, "", span, flags=re.DOTALL) for span in spans))


def squeezed(text: str) -> str:
    """Return a text without white space, which some tokens absorb."""
    return "".join(text.split())


def test_only_flagged_answers_are_trained(masks: Mapping[str, Masks]) -> None:
    """Weights and flags hold for every template."""
    for name, found in masks.items():
        for kind, wanted, other in (("weights", "second", "first"), ("training flags", "first", "second")):
            for outcome in (found.own[kind], found.marked.get(kind)):
                if outcome is not None:
                    assert outcome.sample is not None, (name, outcome.detail)
                    text = "".join(texts(found.encoder, outcome.sample, outcome.sample.loss_mask))
                    assert (wanted in text, other in text) == (True, False), (name, kind, text)


def test_every_answer_is_trained_and_no_question(masks: Mapping[str, Masks]) -> None:
    """This holds also for templates without a training variant."""
    for name, found in masks.items():
        for kind, outcome in found.own.items():
            if outcome.sample is None or re.fullmatch(FLAGGED, kind):
                continue
            text = squeezed("".join(texts(found.encoder, outcome.sample, outcome.sample.loss_mask)))
            for turn in RECORDS[kind]["messages"]:
                words = squeezed((turn["content"] or "").rpartition("</think>")[2])
                if turn["role"] == "assistant":
                    assert words in text, (name, kind, words, text)
                elif len(words) > 5 and kind not in {"markers in text", "words of templates"}:
                    assert words not in text, (name, kind, words, text)


def test_answers_end_in_a_stop_token(masks: Mapping[str, Masks]) -> None:
    """A model learns where to stop, except by a template that writes no stop token behind the last answer."""
    for name, found in masks.items():
        batch = found.encoder.encode_columns([RECORDS["multi-turn"]], "messages")
        assert batch.endings.num_stopped >= (2 if name == "glm4moe" else 1), (name, batch.endings)
        assert found.encoder.stop_warning(batch.endings) is None


def test_the_warning_names_the_training_template(masks: Mapping[str, Masks]) -> None:
    """GLM's template writes no stop token behind a single answer."""
    encoder = masks["glm4moe"].encoder
    warning = encoder.stop_warning(encoder.encode_columns([RECORDS["single"]], "messages").endings)
    assert warning is not None
    assert "'<|user|>'" in warning
    assert warning.endswith("such as trl:glm4moe.")


@pytest.mark.skipif(not trl_version().startswith("1.16."), reason="the page lists the templates of TRL 1.16")
def test_the_page_shows_the_tables() -> None:
    """docs/reference/masks.md has the tables of trl_differences.py."""
    page = (Path(__file__).parents[3] / "docs/reference/masks.md").read_text(encoding="utf-8")
    assert tables() in page, f"write these tables into the page:\n{tables()}"


def unlisted(name: str, kind: str, found: list[tuple[str, str]]) -> list[Any]:
    """Return the differences that are not listed."""
    return [
        (name, kind, who, text) for who, text in found if not any(d.fits(name, kind, who, text) for d in DIFFERENCES)
    ]


def test_every_rejection_is_listed(masks: Mapping[str, Masks]) -> None:
    """A record is refused for a known reason only."""
    rejected = [
        (name, kind, outcome.code, outcome.detail)
        for name, found in masks.items()
        for kind, outcome in found.own.items()
        if outcome.sample is None and not any(case.fits(name, kind) and case.code == outcome.code for case in REJECTED)
    ]
    assert rejected == []


def test_no_entry_is_stale(masks: Mapping[str, Masks]) -> None:
    """Each entry of the tables still occurs."""
    seen_texts: set[Case] = set()
    seen_rejections: set[Case] = set()
    seen_differences: set[Difference] = set()
    for name, found in masks.items():
        for kind, outcome in found.own.items():
            ours, theirs = outcome.sample, found.trl.get(kind)
            seen_rejections |= {case for case in REJECTED if ours is None and case.fits(name, kind)}
            pairs = [(sample, theirs) for sample in (ours, found.marked[kind].sample if found.marked else None)]
            for one, other in pairs:
                if one is None or other is None:
                    continue
                if one.input_ids.tolist() != other.input_ids.tolist():
                    seen_texts |= {case for case in OTHER_TEXT if case.fits(name, kind)}
                    continue
                listed = differences(found.encoder, one, other)
                seen_differences |= {d for d in DIFFERENCES for who, text in listed if d.fits(name, kind, who, text)}
    seen: set[Difference | Case] = {*seen_differences, *seen_texts, *seen_rejections}
    entries: tuple[Difference | Case, ...] = (*DIFFERENCES, *OTHER_TEXT, *REJECTED)
    here = [x for x in entries if any(re.fullmatch(x.templates, n) for n in masks)]
    assert [entry for entry in here if entry not in seen] == []
