"""Known differences between our masks and those of TRL's training templates, with their reasons.

`test_trl_matrix.py` fails on a difference that is not listed, and on an entry that no longer occurs.
docs/reference/masks.md shows the same tables.
"""

# ruff: noqa: RUF001 - DeepSeek's tokens

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qtune_service.tokenize.trl_templates import families
from tests.unit.tokenize.trl_matrix import conversations

EVERY = ".*"


@dataclass(frozen=True, slots=True)
class Difference:
    """Tokens that only one of both masks trains, in the same text."""

    who: str
    """`TRL` or `qtune`: the mask that trains the tokens."""
    templates: str
    kinds: str
    text: str
    """Regular expression of the tokens' text."""
    shown: str
    """The text for readers."""
    reason: str

    def fits(self, template: str, kind: str, who: str, text: str) -> bool:
        """Return whether it explains a run of tokens."""
        is_here = re.fullmatch(self.templates, template) and re.fullmatch(self.kinds, kind)
        return bool(who == self.who and is_here and re.fullmatch(self.text, text, re.DOTALL))


@dataclass(frozen=True, slots=True)
class Case:
    """Templates and kinds of conversation with a reason."""

    templates: str
    kinds: str
    reason: str
    code: str = ""
    """Reason code of a rejection."""
    ignored: str = ""
    """Regular expression of trained text that only one of both templates writes."""

    def fits(self, template: str, kind: str) -> bool:
        """Return whether it covers a case."""
        return bool(re.fullmatch(self.templates, template) and re.fullmatch(self.kinds, kind))


FLAGGED = "untrained empty answer|weights|training flags"

DIFFERENCES: Sequence[Difference] = (
    Difference(
        "TRL",
        EVERY,
        FLAGGED,
        EVERY,
        "an answer whose flag is off",
        "TRL's templates do not read training flags. We leave out answers that the record marks so.",
    ),
    Difference(
        "TRL",
        "diffusion_gemma|gemma3?|idefics3|lfm2.*|nemotron.*|qwen.*|smolvlm",
        EVERY,
        r"\n",
        "the newline behind the end token, and for `qwen2_5` also the newline before the answer",
        "Generation stops at the end token, and the prompt holds the newline before the answer, so the model never "
        "writes them. With the training template, where they are marked, we train them too.",
    ),
    Difference(
        "TRL",
        "deepseek.*",
        EVERY,
        "<｜Assistant｜>|<｜tool▁outputs▁end｜>",
        "`<｜Assistant｜>`, `<｜tool▁outputs▁end｜>`",
        "These are in the generation prompt, so the model never writes them.",
    ),
    Difference(
        "TRL",
        "deepseekv3",
        "reasoning, call",
        r"<｜Assistant｜><think>\n",
        "`<｜Assistant｜><think>`",
        "The generation prompt opens the thought.",
    ),
    Difference(
        "TRL",
        "gptoss|muse_glimmer",
        EVERY,
        r"<\|start\|>assistant",
        "`<|start|>assistant`",
        "The header is the generation prompt.",
    ),
    Difference(
        "TRL",
        "nemotron.*|qwen3_(5_think|6|8)",
        EVERY,
        r"<think>\n",
        "`<think>` at the start of an answer",
        "The generation prompt opens the thought.",
    ),
    Difference(
        "TRL",
        "qwen3_5_nothink",
        EVERY,
        r"<think>\n\n</think>\n\n",
        "the empty thought at the start of an answer",
        "The generation prompt contains the empty thought.",
    ),
    Difference(
        "TRL",
        "phi3.*",
        EVERY,
        r"<\|endoftext\|>",
        "the final `<|endoftext|>`",
        "The answer ends at `<|end|>`, where generation stops.",
    ),
    Difference(
        "TRL",
        "phi3.*",
        "white space",
        r"<\|assistant\|>",
        "`<|assistant|>` before an answer that starts with white space",
        "Phi-3's token absorbs the white space behind it, so transformers counts it as the answer's start.",
    ),
    Difference(
        "TRL",
        "lfm2.*|qwen2_5.*|qwen3_instruct_2507|qwen3_vl",
        "white space",
        r"\n ",
        "a token of the header's newline and the answer's first blank",
        "It starts in the header and holds no word of the answer. The model would have to write the header again.",
    ),
    Difference(
        "qtune",
        "diffusion_gemma",
        ".*call.*|tool last",
        r"<\|tool_response>",
        "`<|tool_response>` behind a call",
        "It is a stop token of Gemma 4: the model writes it to hand over to the tool.",
    ),
    Difference(
        "qtune",
        "diffusion_gemma",
        "Unicode",
        "\ufffd+",
        "the last bytes of a character at the end of a marked block",
        "transformers finds the token of a block's last character, and leaves out further tokens of that character.",
    ),
)
_QWEN_THOUGHTS = r"(<think>\n)?(?:(?!<think>).)*?\n</think>\n\n|(?<=<\|im_end\|>)\n"
OTHER_TEXT: Sequence[Case] = (
    Case(
        "glm4moe",
        EVERY,
        "TRL's variant also writes a stop token behind the last answer. The vendor's template ends with the answer, so "
        "no stop token can be trained there.",
        ignored=r"<\|(user|observation|system)\|>",
    ),
    Case(
        "qwen3|qwen3_5_nothink|qwen3_5_think|qwen3_6",
        EVERY,
        "TRL's variant shows a thought, perhaps empty, in every answer. The vendor's template drops it from answers "
        "before the last question.",
        ignored=_QWEN_THOUGHTS,
    ),
)
_ALTERNATE = "The template refuses turns that do not alternate."
REJECTED: Sequence[Case] = (
    Case("cohere2?|gemma3?", "answer first|two answers in a row", _ALTERNATE, "template_error"),
    Case("cohere|gemma3", "system in the middle", _ALTERNATE, "template_error"),
    Case(
        "deepseek_r1_distill",
        "content beside a call",
        "The template shows a call only where there is no content.",
        "context_dropped",
    ),
    Case(
        "deepseek.*",
        "reasoning|reasoning inline|reasoning, multi-turn",
        "The template drops the reasoning of the last answer.",
        "context_dropped",
    ),
    Case(
        "deepseek_r1_distill", "reasoning, call", "The template drops the reasoning beside a call.", "context_dropped"
    ),
    Case(
        "diffusion_gemma|gemma4(_v[345])?",
        "content beside a call",
        "The template writes the content behind the result of the call.",
        "context_dropped",
    ),
    Case(
        "gemma4(_v[34])?",
        "reasoning.*",
        "The template shows reasoning beside calls only.",
        "context_dropped",
    ),
    Case(
        "gemma4_v2",
        "reasoning, call",
        "The template has no place for reasoning, and writes the content behind the call.",
        "context_dropped",
    ),
    Case("gptoss|qwen3_vl", "system in the middle", "The template drops the turn.", "context_dropped"),
    Case(
        "gptoss",
        "content beside a call",
        "The template drops the content, because a final answer follows.",
        "context_dropped",
    ),
    Case("gptoss", "parallel calls", "The template shows the first call only.", "context_dropped"),
    Case(
        "gptoss",
        "reasoning, call",
        "The template drops the reasoning of a call, because a final answer follows.",
        "context_dropped",
    ),
    Case("llama3_[12]", "parallel calls", "The template refuses several calls a turn.", "template_error"),
    Case(
        "llama3_[12]|muse_glimmer",
        "content beside a call",
        "The template drops the content of a turn with calls.",
        "context_dropped",
    ),
    Case(
        "llama3_[12]",
        "reasoning, call",
        "The template has no place for reasoning, and drops the content of a turn with calls.",
        "context_dropped",
    ),
    Case(
        "llava_next",
        "answer first",
        "The template writes nothing before an answer, so its start cannot be proven.",
        "mask_not_verified",
    ),
    Case(
        "qwen3_5_.*|qwen3_6|qwen3_8",
        "system in the middle",
        "The template refuses a system turn that is not the first.",
        "template_error",
    ),
)


def tables() -> str:
    """Return the tables of docs/reference/masks.md."""
    differing = [(_names(d.templates), _kinds(d.kinds), d.who, d.shown, d.reason) for d in DIFFERENCES]
    others = [(_names(c.templates), _kinds(c.kinds), c.reason) for c in OTHER_TEXT]
    rejected = [(_names(c.templates), _kinds(c.kinds), f"`{c.code}`", c.reason) for c in REJECTED]
    return "\n\n".join(
        (
            "### Same text, different mask",
            _table(("templates", "conversations", "trained by", "tokens", "reason"), differing),
            "### Different text",
            _table(("templates", "conversations", "reason"), others),
            "### Rejected",
            _table(("templates", "conversations", "reason code", "reason"), rejected),
        )
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        head,
        ["---"] * len(head),
        *([cell.replace("<|", "<\\|").replace("|>", "\\|>") for cell in r] for r in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _names(pattern: str) -> str:
    """Return the templates of the installed TRL that a pattern names."""
    if pattern == EVERY:
        return "all"
    found = [name for name in families() if re.fullmatch(pattern, name)]
    return ", ".join(f"`{name}`" for name in found)


def _kinds(pattern: str) -> str:
    """Return the kinds of conversation that a pattern names."""
    if pattern == EVERY:
        return "all"
    return "; ".join(kind for kind in conversations() if re.fullmatch(pattern, kind))
