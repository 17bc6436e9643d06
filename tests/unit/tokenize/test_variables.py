"""Variables of a record: chat_template_kwargs and documents reach the template, or are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qtune_service.ingest.records import Conversation, RecordError
from qtune_service.tokenize.chat_template import RESERVED
from qtune_service.tokenize.encoder import Encoder
from tests.unit.tokenize.chat_models import CHATML, MARKED, make_encoder

THINKING = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
{% if m.role == 'assistant' and loop.last and enable_thinking is defined and not enable_thinking %}\
{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}\
{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
"""An empty thought is a part of the prompt if thinking is off, as in Qwen3."""

DOCUMENTS = "{% for d in documents or [] %}{{ '<|system|>' + d.text + '<|end|>' }}{% endfor %}" + CHATML
MESSAGES = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
)


def trained(encoder: Encoder, **variables: Any) -> tuple[str, str, tuple[str, ...]]:
    """Return the text of a conversation, what is trained of it, and its notes."""
    rendering = encoder._render(Conversation(MESSAGES, None, (False, True, False, True), template_kwargs=variables))
    spans = encoder._locate(rendering, 1)
    return rendering.text, "".join(rendering.text[start:stop] for start, stop in spans), rendering.notes


def test_variables_reach_the_template(folder: Path) -> None:
    """A thought that the generation prompt closes is no part of the answer."""
    encoder = make_encoder(folder, THINKING)
    plain, off = trained(encoder), trained(encoder, enable_thinking=False)
    assert "<think>" not in plain[0]
    assert "<think>\n\n</think>\n\nb" in off[0]
    assert plain[1:] == off[1:] == ("a<|im_end|>b<|im_end|>", ())
    assert trained(encoder) == plain, "nothing of one record is kept for the next"


def test_documents_reach_the_template(folder: Path) -> None:
    """Objects and texts; also with markers."""
    for template in (DOCUMENTS, DOCUMENTS.replace(CHATML, MARKED)):
        for documents in ([{"title": "t", "text": "Some facts."}], ["Some facts."]):
            text, answers, notes = trained(make_encoder(folder, template), documents=documents)
            assert "Some facts." in text
            assert (answers, notes) == ("a<|im_end|>b<|im_end|>", ())


@pytest.mark.parametrize(
    ("variables", "notes"),
    [
        ({"documents": [{"text": "Some facts."}]}, ["documents"]),
        ({"documents": [{"contents": "Some facts."}]}, ["documents"]),
        ({"documents": []}, ["documents"]),
        ({"style": "brief", "enable_thinking": True}, ["style", "enable_thinking"]),
    ],
)
def test_variables_that_are_not_shown_are_counted(variables: Any, notes: list[str], folder: Path) -> None:
    """Each by its name. The word `documents` in a comment of the template is no use of it."""
    encoder = make_encoder(folder, "{# documents, style #}" + CHATML)
    wanted = tuple(f"the chat template does not show `{name}`" for name in notes)
    assert trained(encoder, **variables)[2] == wanted
    if variables.get("documents"):
        shown = make_encoder(folder, "{{ documents | length }}" + CHATML)
        assert trained(shown, **variables)[2] == wanted, "the number of documents is not their text"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_names_of_the_renderer_are_refused(name: str, folder: Path) -> None:
    """A record cannot replace messages, tokens or functions of the template."""
    with pytest.raises(RecordError, match=f"template_error: chat_template_kwargs sets '{name}'"):
        trained(make_encoder(folder, CHATML), **{name: [{"role": "user", "content": "x"}]})


def test_reserved_names_with_the_value_in_use_are_accepted(folder: Path) -> None:
    """Data often hold `add_generation_prompt: false`."""
    assert trained(make_encoder(folder, CHATML), add_generation_prompt=False, eos_token="</s>")[2] == ()


def test_documents_of_another_form_are_refused(folder: Path) -> None:
    """The error says what documents are."""
    for documents in ("text", {"text": "x"}, 3):
        with pytest.raises(RecordError, match=r"template_error: documents must be a list"):
            trained(make_encoder(folder, DOCUMENTS), documents=documents)


def test_notes_are_counted_over_accepted_records(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected record is not counted, and batches add up."""
    encoder = make_encoder(folder, CHATML)
    conversation = Conversation(MESSAGES, None, (False, True, False, True), notes=("a note",))
    bad = Conversation(MESSAGES, None, (False, True, False, True), template_kwargs={"messages": []}, notes=("a note",))
    monkeypatch.setattr(encoder, "_prepare", lambda record, _: encoder._render(record["conversation"]))
    records = [{"conversation": item} for item in (conversation, bad, conversation)]
    batch = encoder.encode_columns(records * 700, "messages")
    assert batch.notes == {"a note": 1400}
    assert len(batch.problems) == 700
