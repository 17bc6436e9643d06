"""Encode conversations as input_ids and loss_mask, by one rendering and one tokenization of the whole text.

The tokenizer's template (or the given one, or the plain one) renders the conversation once. The text is tokenized once,
with character offsets and without added special tokens, because templates write their own. assistant_mask.py returns
the trained characters, which determine the trained tokens. Rendering turn by turn and concatenating tokens would
misalign masks.

Texts are tokenized in groups of GROUP, in one call that releases the GIL and takes half the time of single calls. The
Rust tokenizer is called directly: it gives the same ids as transformers, without building lists. A tokenizer without a
Rust implementation gives no offsets and is rejected at start. After that, a shard is columns (encoded_batch.py).
"""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qtune_service.config import FormatName, InputSpec, ModelSpec
from qtune_service.errors import ModelError
from qtune_service.ingest.formats import to_conversation
from qtune_service.ingest.records import ColumnNames, Conversation, RecordError, Tokenized
from qtune_service.tokenize.assistant_mask import token_masks, trained_spans
from qtune_service.tokenize.chat_template import (
    PLAIN_TEMPLATE,
    ChatTemplate,
    Span,
)
from qtune_service.tokenize.context import apply_fallbacks, check_context, describe_fallbacks, notes_of, unseen_keys
from qtune_service.tokenize.encoded_batch import (
    Encoded,
    EncodedBatch,
    Endings,
    TokenLocator,
    Tokens,
    concatenated,
    limit_length,
    offsets_of,
)
from qtune_service.tokenize.named_sources import model_folder, read_chat_template, with_local_files
from qtune_service.tokenize.stop_tokens import stop_token_ids
from qtune_service.tokenize.trl_templates import training_template_for
from qtune_service.tokenize.turn_spans import Rendering

__all__ = ["Encoded", "Encoder", "load_tokenizer"]

BLANKS = ("\n", "\n\n", "\n\n\n", " ", "  ", "\t", "\r\n")
GROUP = 1024
"""Records tokenized per call."""


class Encoder:
    """A tokenizer with its template. Built once a process, not thread-safe."""

    def __init__(
        self, model: ModelSpec, input_spec: InputSpec, *, max_model_len: int, vocab_size: int | None = None
    ) -> None:
        model = with_local_files(model)
        self._spec = input_spec
        self._names = ColumnNames.of(input_spec)
        self._max_len = max_model_len
        self._tokenizer = load_tokenizer(model)
        self._vocab_size = vocab_size
        self._backend = _plain_backend(self._tokenizer)
        self._locator = TokenLocator(self._backend)
        self._stop_ids = np.array(stop_token_ids(model, self._tokenizer), np.int32)
        self._blank_ids = np.array(sorted(self._find_blanks()), np.int32)
        self._templates: dict[str, ChatTemplate] = {}
        self._origin = self._choose_template()
        self._template(None)

    def encode(self, record: Mapping[str, Any], format: FormatName) -> Encoded:  # noqa: A002
        """Encode one record. Raises RecordError if it cannot be scored."""
        outcome = self.encode_batch([record], format)[0]
        if isinstance(outcome, RecordError):
            raise outcome
        return outcome

    def encode_batch(
        self,
        records: Sequence[Mapping[str, Any]],
        format: FormatName,  # noqa: A002 - the name that users know
    ) -> list[Encoded | RecordError]:
        """Encode records; return one outcome for each."""
        return self.encode_columns(records, format).outcomes()

    def encode_columns(
        self,
        records: Sequence[Mapping[str, Any]],
        format: FormatName,  # noqa: A002
    ) -> EncodedBatch:
        """Encode records as columns."""
        encode = self._encode_tokenized if format == "tokenized" else self._encode_texts
        firsts = range(0, len(records), GROUP)
        batches = []
        for first in firsts:
            with collector_paused():
                batches.append((first, encode(records[first : first + GROUP], format)))
        return concatenated(batches)

    @property
    def template_description(self) -> str:
        """Describe the template, its mask method and its fallbacks, for the manifest."""
        template = self._template(None)
        how = "generation markers" if template.has_markers else "mask verified by rendering"
        return "; ".join([self._origin, how, *describe_fallbacks(template)])

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Return the tokens that end turns: the model's stop tokens, and the template's end-of-turn token."""
        template = self._template(None)
        names = [template.end_of_turn] if template.end_of_turn in template.special_tokens else []
        own: list[int] = self._tokenizer.convert_tokens_to_ids(names)
        return tuple(sorted({*self._stop_ids.tolist(), *own}))

    @property
    def uses_plain_template(self) -> bool:
        """Return whether neither the job nor the tokenizer has a template."""
        return bool(self._tokenizer.chat_template == PLAIN_TEMPLATE)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of tokenizer, template and stop tokens. Equal fingerprints give equal tokens and masks."""
        templates = json.dumps(self._tokenizer.chat_template, sort_keys=True)
        parts = [self._tokenizer.backend_tokenizer.to_str(), json.dumps(self._tokenizer.special_tokens_map), templates]
        if len(self._stop_ids) > 1:  # they decide where answers end
            parts.append(json.dumps(self._stop_ids.tolist()))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def stop_warning(self, endings: Endings) -> str | None:
        """Return a warning if no trained span of a job ends in a stop token of the model."""
        if not endings.num_spans or endings.num_stopped or not len(self._stop_ids):
            return None
        seen = ", ".join(repr(self.decode([token])) for token in list(endings.last_tokens)[:3])
        stops = ", ".join(repr(self.decode([int(token)])) for token in self._stop_ids[:4])
        known = training_template_for(self._template(None).source)
        example = f", such as trl:{known[0]}" if known is not None and known[1] else ""
        return (
            f"No trained text ends in a stop token of the model ({stops}), so a model trained on it may not learn to "
            f"stop. The last trained tokens are {seen}. Give a chat template that ends answers with a stop "
            f"token{example}."
        )

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer with the used template to a local folder."""
        self._tokenizer.save_pretrained(str(folder))

    def decode(self, input_ids: Sequence[int]) -> str:
        """Decode tokens, including special tokens."""
        return str(self._backend.decode([int(i) for i in input_ids], skip_special_tokens=False))

    def _choose_template(self) -> str:
        """Set the tokenizer's template, and return its origin."""
        if self._spec.chat_template is not None:
            self._tokenizer.chat_template = read_chat_template(self._spec.chat_template)
            return "template given by the job"
        if self._tokenizer.chat_template:
            return "tokenizer's own template"
        self._tokenizer.chat_template = PLAIN_TEMPLATE
        return "plain template, the tokenizer has none"

    def _template(self, tools: Any) -> ChatTemplate:
        source = self._tokenizer.get_chat_template(tools=tools)
        if source not in self._templates:
            added = self._tokenizer.added_tokens_decoder.values()
            special = {str(token) for token in added if token.special} | set(self._tokenizer.all_special_tokens)
            stops = [self._tokenizer.convert_ids_to_tokens(int(i)) for i in self._stop_ids]
            known = [token for token in stops if token in special]
            self._templates[source] = ChatTemplate(source, self._tokenizer.special_tokens_map, special, known)
        return self._templates[source]

    def _encode_texts(self, records: Sequence[Mapping[str, Any]], format: FormatName) -> EncodedBatch:  # noqa: A002
        prepared = {i: _caught(self._prepare, record, format) for i, record in enumerate(records)}
        problems = {i: item for i, item in prepared.items() if isinstance(item, RecordError)}
        renderings = [item for item in prepared.values() if isinstance(item, Rendering)]
        located = self._locator.locate([item.text for item in renderings])
        spans: list[list[Span]] = []
        rows = [i for i in prepared if i not in problems]
        for i, item, num_tokens in zip(rows, renderings, np.diff(located.offsets).tolist(), strict=True):
            outcome = _caught(self._locate, item, num_tokens)
            if isinstance(outcome, RecordError):
                problems[i] = outcome
            spans.append([] if isinstance(outcome, RecordError) else outcome)
        mask = token_masks(renderings, spans, located)
        batch = self._limited(Tokens(np.array(rows, np.int64), located.ids, mask, located.offsets), problems)
        notes = Counter(
            note
            for i, item in zip(rows, renderings, strict=True)
            if item.notes and i not in batch.problems
            for note in item.notes
        )
        return replace(batch, notes=dict(notes)) if notes else batch

    def _encode_tokenized(self, records: Sequence[Mapping[str, Any]], format: FormatName) -> EncodedBatch:  # noqa: A002
        problems, items = {}, {}
        for i, record in enumerate(records):
            item = _caught(self._prepare, record, format)
            outcome = item if isinstance(item, RecordError) else _caught(self._check_length, len(item.input_ids))
            if isinstance(outcome, RecordError):
                problems[i] = outcome
            else:
                items[i] = item
        samples: list[Tokenized] = list(items.values())
        tokens = Tokens(
            np.fromiter(items, np.int64, len(items)),
            np.concatenate([np.empty(0, np.int32), *(item.input_ids for item in samples)]),
            np.concatenate([np.empty(0, np.int8), *(item.loss_mask for item in samples)]),
            offsets_of(np.fromiter((len(item.input_ids) for item in samples), np.int64, len(samples))),
        )
        return self._limited(tokens, problems)

    def _prepare(self, record: Mapping[str, Any], format: FormatName) -> Rendering | Tokenized:  # noqa: A002
        item = to_conversation(record, format, self._names)
        return item if isinstance(item, Tokenized) else self._render(item)

    def _render(self, conversation: Conversation) -> Rendering:
        template = self._template(conversation.tools)
        adapted = apply_fallbacks(conversation, template)
        text, marked = template.render_marked(adapted.messages, adapted.tools, adapted.variables)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            detail = f"half of a surrogate pair at character {error.start} of the rendered text"
            raise RecordError("not_unicode", detail) from error
        notes = conversation.notes + check_context(adapted, template, text)
        if adapted.variables:
            notes += notes_of(adapted, template, text)
        if any(len(message) > 2 for message in conversation.messages):
            notes += unseen_keys(conversation.messages, template, text)
        return Rendering(template, adapted, text, None if marked is None else tuple(marked), notes)

    def _locate(self, item: Rendering, num_tokens: int) -> list[Span]:
        self._check_length(num_tokens)  # before locating spans, which can cost turns x length
        return trained_spans(item)

    def _find_blanks(self) -> set[int]:
        """Return the tokens of white space that templates write behind an end token."""
        encodings = self._backend.encode_batch(list(BLANKS), add_special_tokens=False)
        ids = {token for encoding in encodings for token in encoding.ids}
        return {token for token in ids if not self.decode([token]).strip()}

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self._max_len and self._spec.overlong == "reject":
            raise RecordError("too_long", f"{num_tokens} tokens; the limit is {self._max_len}")

    def _limited(self, tokens: Tokens, problems: dict[int, RecordError]) -> EncodedBatch:
        known = tokens.without(problems)
        batch = limit_length(known, problems, max_len=self._max_len, vocab_size=self._vocab_size)
        return replace(batch, endings=Endings.of(batch.tokens, self._stop_ids, self._blank_ids))


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Disable garbage collection, which would scan new objects in use again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def load_tokenizer(model: ModelSpec) -> Any:
    """Load the tokenizer of a model. Raises ModelError if it is missing or gives no offsets."""
    from transformers import AutoTokenizer

    name = model.tokenizer or model.name
    hint = "Give a model folder or hub id that holds a tokenizer, or name one with --tokenizer."
    folder = model_folder(name)
    if folder is not None and not folder.exists():
        raise ModelError(f"no model at {name}", hint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name if folder is None else str(folder),
            revision=None if model.tokenizer else model.revision,
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(f"cannot load the tokenizer of {name}: {first_line}", hint) from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer of {name} has no tokenizer.json form, so it cannot give offsets", hint)
    return tokenizer


def _plain_backend(tokenizer: Any) -> Any:
    """Return a copy of the Rust tokenizer without truncation, padding and post-processing.

    Post-processors add special tokens, and some trim white space from the offsets.
    """
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = None
    return backend


def _caught(step: Any, *arguments: Any) -> Any:
    """Return the result of a step, or its RecordError without the frames that it would keep alive."""
    try:
        return step(*arguments)
    except RecordError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
