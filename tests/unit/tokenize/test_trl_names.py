"""tokenize/named_sources.py: `trl:NAME` is a template of the installed TRL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qtune_service.errors import SpecError
from qtune_service.ingest.records import RecordError
from qtune_service.tokenize import trl_templates as module
from qtune_service.tokenize.named_sources import is_trl_name, read_chat_template
from qtune_service.tokenize.trl_templates import families, training_template_for, trl_templates
from tests.jobs import environment
from tests.unit.tokenize.chat_models import make_encoder, trained_text

pytestmark = pytest.mark.skipif(not trl_templates(), reason="TRL is not installed, and ships the templates")


def text_of(name: str) -> str:
    """Return a template of TRL."""
    return trl_templates()[name].read_text(encoding="utf-8")


def test_a_name_takes_the_training_variant(folder: Path) -> None:
    """The variant with markers if there is one, else the vendor's, also under the server's roots."""
    assert read_chat_template("trl:qwen3") == text_of("qwen3_training")
    assert read_chat_template("trl:qwen3_training") == text_of("qwen3_training")
    assert read_chat_template("trl:llama3_1", roots=()) == text_of("llama3_1")
    encoder = make_encoder(folder, "trl:gemma3")
    record = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert trained_text(encoder, encoder.encode(record, "messages").sample) == "a<end_of_turn>\n"
    assert encoder.template_description.startswith("template given by the job; generation markers")


@pytest.mark.parametrize(
    "name", ["trl:nope", "trl:", "trl:../qwen3", "trl:/etc/passwd", "trl:qwen3.jinja", "trl:Q", "trl:..", "trl:a\0"]
)
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    """A name is never a path."""
    assert is_trl_name(name)
    with pytest.raises(SpecError, match="TRL has no chat template") as caught:
        read_chat_template(name)
    assert "qwen3, " in caught.value.hint
    assert "_training" not in caught.value.hint


def test_without_trl_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL is no dependency."""
    monkeypatch.setattr(module, "trl_templates", dict)
    with pytest.raises(SpecError, match="TRL is not installed here"):
        read_chat_template("trl:qwen3")
    assert families() == []


def test_trl_is_not_imported() -> None:
    """Its import would import torch. A process of its own, since other tests here import TRL."""
    code = (
        "import sys; from qtune_service.tokenize.named_sources import read_chat_template; "
        "read_chat_template('trl:qwen3'); sys.exit('trl' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


def test_the_family_of_a_template_is_found() -> None:
    """By equal words, or by similar ones, as of a revision."""
    for name in families():
        if f"{name}_training" in trl_templates():
            found = training_template_for(text_of(name))
            assert found is not None
            assert found[1]
            assert text_of(found[0]).split() == text_of(name).split()
    assert training_template_for(text_of("qwen3").replace("reasoning_content", "thought")) == ("qwen3", False)
    assert training_template_for("{{ messages }}") is None


def test_a_mask_that_cannot_be_proven_names_the_training_template(folder: Path) -> None:
    """The way out is a template that TRL has for the family."""
    record = {
        "messages": [
            {"role": "assistant", "content": "Welcome."},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ]
    }
    encoder = make_encoder(folder, text_of("llava_next"))
    with pytest.raises(RecordError, match=r"mask_not_verified: .* turn 1 starts .* such as trl:llava_next, TRL's"):
        encoder.encode(record, "messages")
    assert make_encoder(folder, "trl:llava_next").encode(record, "messages").sample.loss_mask.any()
