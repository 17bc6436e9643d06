"""Reference engine on plain torch and transformers: the reference that tests compare with, and the engine without vLLM.

A batch is one row of packed sequences if packing is exact for the model (packing.py), else sequences of similar length
padded on the right. A causal model's output at a token does not depend on later tokens, so no attention mask is needed
and the fast causal kernel runs.

Logits are computed in blocks and only for rows that predict scored tokens. On a GPU a kernel may replace them
(logits.py). That requires the model's path from hidden state to logits, which for some models is more than a matrix
(Gemma 2 caps its logits, Cohere and Granite scale them). So the path is checked when the model is loaded:

- `head`: the output embedding applied to the last hidden state, if that equals the model's own logits bit for bit on a
  probe sequence.
- `forward`: otherwise the model's own forward pass, one sequence at a time, in chunks with a KV cache. It is slower and
  correct by construction.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, ModelError
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.logits import KERNEL_IS_OFF, BlockwiseHead, Choice, Matrix, choose_head, default_logits_bytes
from qtune_service.scoring.model_config import Checkpoint, read_checkpoint, unsupported_architecture
from qtune_service.scoring.packing import enable_packing, pack, packed_batches
from qtune_service.scoring.process_environment import apply_environment, quiet_libraries, warm_up_vector_math
from qtune_service.scoring.scorer import (
    EngineInfo,
    FlatScores,
    InterruptedScoring,
    PreparedSamples,
    Prompt,
    Scores,
    Watch,
    never,
)
from qtune_service.scoring.statistics import nll_and_entropy, statistics_for

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 2048, 16384
PROBE_TOKENS = 16
CAUSAL_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 3e-2}  # share of the largest logit
_LENGTH_SENSITIVE_ROPE = frozenset({"dynamic", "longrope", "su"})  # angles depend on the longest sequence of a batch
_LOGIT_TRANSFORMS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


def installed_versions() -> str:
    """Return the versions of the libraries that decide the scores."""
    return f"transformers {metadata.version('transformers')}, torch {torch.__version__}"


class ReferenceScorer:
    """`SteppedScorer` on plain transformers."""

    def __init__(self, model: ModelSpec, engine: EngineSpec, reason: str = "") -> None:
        if engine.tensor_parallel_size > 1:
            raise EngineError(
                f"The reference engine runs on one device, not on tensor_parallel_size {engine.tensor_parallel_size}.",
                "Use the engine `vllm`, or tensor_parallel_size 1.",
            )
        apply_environment()
        checkpoint = read_checkpoint(model)
        if checkpoint.max_model_len is None:
            raise ModelError(f"{model.name}: its config.json states no length limit.", "Set max_model_len.")
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        warm_up_vector_math()
        with quiet_libraries():
            self._model: Any = _load(model, checkpoint).to(self._device)
            with torch.inference_mode():
                self._path = choose_path(self._model, checkpoint)
                self._why_padded = self._packing_problem(checkpoint)
        self._batch_tokens = engine.max_num_batched_tokens or (
            GPU_BATCH_TOKENS if self._device.type == "cuda" else CPU_BATCH_TOKENS
        )
        self._max_batch_size = 1 if _angles_depend_on_batch(checkpoint) else self._batch_tokens
        device_bytes = torch.cuda.get_device_properties(0).total_memory if self._device.type == "cuda" else 0
        logits_bytes = engine.logits_bytes or default_logits_bytes(device_bytes)
        self._block_rows = max(1, logits_bytes // (4 * checkpoint.vocab_size))
        self._statistics = statistics_for(self._device)
        with torch.inference_mode():
            self._head = self._choose_head(try_kernel=engine.head_kernel)
        self._info = EngineInfo(
            name="reference",
            version=installed_versions(),
            device=torch.cuda.get_device_name() if self._device.type == "cuda" else "cpu",
            dtype=checkpoint.dtype,
            architecture=checkpoint.architecture,
            max_model_len=checkpoint.max_model_len,
            vocab_size=checkpoint.vocab_size,
            reason=reason,
            head=self._head.description,
            batches=f"padded: {self._why_padded}" if self._why_padded else "packed",
        )

    @property
    def info(self) -> EngineInfo:
        """Return the engine information."""
        return self._info

    @property
    def path(self) -> str:
        """Return `head` or `forward`; see the module."""
        return self._path

    def _packing_problem(self, checkpoint: Checkpoint) -> str:
        if self._path != "head":
            return "the model is scored one sequence at a time"
        if _angles_depend_on_batch(checkpoint):
            return "rotary angles depend on the longest sequence of a batch"
        return enable_packing(self._model, checkpoint.vocab_size, CAUSAL_TOLERANCE[checkpoint.dtype])

    def _choose_head(self, *, try_kernel: bool) -> Choice:
        embedding = self._model.get_output_embeddings()
        matrix = plain_matrix(embedding) if self._path == "head" else "the model's logits are more than a matrix"
        project = matrix.project if isinstance(matrix, Matrix) else embedding
        blockwise = BlockwiseHead(project, self._block_rows, self._statistics)
        return choose_head(blockwise, matrix if try_kernel or isinstance(matrix, str) else KERNEL_IS_OFF)

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:
        """Score samples in the given order; see `Scorer`."""
        prepared = self.prepare(samples)
        return self.finish(prepared, self.run(prepared, watch)).rows()

    def prepare(self, samples: Sequence[Sample]) -> PreparedSamples:
        """Sort samples; see `SteppedScorer`."""
        return PreparedSamples.of(samples, self._info)

    def run(self, prepared: PreparedSamples, watch: Watch = never) -> dict[int, Scores]:
        """Return the scores of each prompt, (n, 2); see `SteppedScorer`."""
        if self._model is None:
            _closed()
        with torch.inference_mode():
            scores = self._score_prompts(prepared.prompts, watch)
        if len(scores) < len(prepared.prompts):
            raise InterruptedScoring(prepared.finished(scores))
        return scores

    def finish(self, prepared: PreparedSamples, result: dict[int, Scores]) -> FlatScores:
        """Return the scores of the samples; see `SteppedScorer`."""
        ordered = [result[i] for i in range(len(prepared.prompts))]
        return prepared.select(np.concatenate([np.empty((0, 2), np.float32), *ordered]))

    def _score_prompts(self, prompts: Sequence[Prompt], watch: Watch) -> dict[int, Scores]:
        """Score prompts in batches: index -> (n, 2). Some are missing if `watch` stopped the call.

        A GPU is synchronized once, at the end.
        """
        run = self._score_batch if self._path == "head" else self._score_by_forward
        tokens, parts = 0, []
        for batch in self._batches([_length(prompt) for prompt in prompts]):
            if watch(tokens):
                break
            parts.append((batch, run([prompts[i] for i in batch])))  # (rows of the batch, 2)
            tokens += sum(len(prompts[i].input_ids) for i in batch)
        scores = {i: np.empty((0, 2), np.float32) for i, prompt in enumerate(prompts) if not _length(prompt)}
        for batch, part in parts:
            ends = np.cumsum([len(prompts[i].positions) for i in batch])
            scores |= zip(batch, np.split(part.cpu().numpy(), ends[:-1]), strict=True)
        return scores

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        if not self._why_padded:
            return packed_batches(lengths, self._batch_tokens)
        size = self._max_batch_size if self._path == "head" else 1
        return token_budget_batches(lengths, self._batch_tokens, size)

    def _score_batch(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Score by the `head` path: (n of all prompts, 2)."""
        lengths = [_length(prompt) for prompt in prompts]
        sequences = [torch.from_numpy(p.input_ids[:n].astype(np.int64)) for p, n in zip(prompts, lengths, strict=True)]
        if self._why_padded:
            batch = pad(sequences, self._device)
            begins = np.arange(len(prompts)) * max(lengths)
        else:
            batch = pack(sequences, self._device)
            begins = np.cumsum([0, *lengths[:-1]])
        predicting = np.concatenate([b + prompt.positions - 1 for b, prompt in zip(begins, prompts, strict=True)])
        labels = self._tensor(np.concatenate([prompt.input_ids[prompt.positions] for prompt in prompts]))
        hidden = self._model.base_model(**batch).last_hidden_state.flatten(0, 1)  # (B T, H)
        return nll_and_entropy(self._head.head(hidden[self._tensor(predicting)], labels))

    def _score_by_forward(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        """Score one prompt by the `forward` path, in chunks of at most `block_rows` tokens: (n, 2)."""
        (prompt,) = prompts
        all_ids = self._tensor(prompt.input_ids)
        ids = all_ids[: _length(prompt)]  # (T,)
        positions = self._tensor(prompt.positions)
        chunk = max(1, min(self._block_rows, self._batch_tokens))
        cache, parts = None, [torch.empty(0, 4, device=self._device)]
        for begin in range(0, len(ids), chunk):
            end = min(begin + chunk, len(ids))
            is_whole = begin == 0 and end == len(ids)
            output = self._model(input_ids=ids[None, begin:end], past_key_values=cache, use_cache=not is_whole)
            cache = output.past_key_values if not is_whole else None
            mine = positions[(positions > begin) & (positions <= end)]  # row t - 1 predicts token t
            parts.append(self._statistics(output.logits[0, mine - 1 - begin], all_ids[mine]))
        return nll_and_entropy(torch.cat(parts))

    def _tensor(self, array: Any) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array, np.int64), device=self._device)

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._model = None
        self._head = Choice(_closed, self._head.description)  # it held the head's weight
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _closed(*_: torch.Tensor) -> torch.Tensor:
    raise EngineError("The scorer is closed.", "Build a new one.")


def _length(prompt: Prompt) -> int:
    """Return the number of tokens to read, up to the one that predicts the last scored token; 0 without one."""
    return int(prompt.positions[-1]) if len(prompt.positions) else 0


def pad(sequences: Sequence[torch.Tensor], device: torch.device) -> dict[str, Any]:
    """Return the forward arguments for int64 sequences (T_i,), padded on the right."""
    ids = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True)  # (B, T)
    return {"input_ids": ids.to(device), "use_cache": False}


def token_budget_batches(lengths: Sequence[int], budget: int, max_size: int) -> Iterator[list[int]]:
    """Group indices by similar length, longest first, so that size x longest stays within the budget.

    A sequence longer than the budget forms its own group. Length 0 is omitted.
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[i] == 0:
            break
        if batch and ((len(batch) + 1) * lengths[batch[0]] > budget or len(batch) == max_size):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _load(model: ModelSpec, checkpoint: Checkpoint) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(checkpoint.config.model_type)
    has_own_code = model.trust_remote_code and "AutoModelForCausalLM" in (
        checkpoint.config.to_dict().get("auto_map") or {}
    )
    if checkpoint.architecture != known and not has_own_code:
        engine = f"transformers {metadata.version('transformers')}"
        detail = f"For model type {checkpoint.config.model_type!r} it has {known or 'none'}."
        raise unsupported_architecture(model.name, checkpoint.architecture, engine, detail)
    source = str(Path(model.name).expanduser()) if Path(model.name).expanduser().is_dir() else model.name
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=model.revision,
            dtype=getattr(torch, checkpoint.dtype),
            trust_remote_code=model.trust_remote_code,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"Model {model.name} cannot be loaded: {error}", "Check that its folder is complete."
        ) from error
    return loaded.eval()


def choose_path(model: Any, checkpoint: Checkpoint) -> str:
    """Return `head` if the output embedding gives the model's own logits bit for bit, else `forward`.

    Raises ModelError for a model whose output at a token depends on later tokens.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(checkpoint.vocab_size, (1, PROBE_TOKENS), generator=generator).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits  # (1, T, V)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % checkpoint.vocab_size
    # Equal up to rounding: the grouping of tokens in a mixture of experts may depend on all tokens.
    drift = (logits - model(input_ids=changed, use_cache=False).logits)[:, :-1].abs().max()
    if drift > CAUSAL_TOLERANCE[checkpoint.dtype] * logits.abs().max():
        detail = "This one is not causal: its prediction for a token depends on later tokens."
        raise unsupported_architecture(checkpoint.name, checkpoint.architecture, "any engine", detail)
    text_config = checkpoint.config.get_text_config()
    if any(getattr(text_config, key, None) not in (None, 1, 1.0) for key in _LOGIT_TRANSFORMS):
        return "forward"
    return "head" if _head_is_all(model, ids, logits) else "forward"


def _head_is_all(model: Any, ids: torch.Tensor, logits: torch.Tensor) -> bool:
    """Return whether output embedding x last hidden state equals the logits (1, T, V) of `ids` (1, T)."""
    head, base = model.get_output_embeddings(), model.base_model
    if head is None or base is model or "use_cache" not in inspect.signature(base.forward).parameters:
        return False
    hidden = getattr(base(input_ids=ids, use_cache=False), "last_hidden_state", None)
    if hidden is None or hidden.shape[-1] != head.weight.shape[-1]:
        return False
    return bool(torch.equal(head(hidden), logits))


def plain_matrix(head: torch.nn.Module) -> Matrix | str:
    """Return the output embedding as a matrix, or the reason why it is not one. For the `head` path only."""
    if type(head) is not torch.nn.Linear:  # adapters, quantized and wrapped heads have other classes
        return f"the head is a {type(head).__name__}"
    weight = head.weight
    if type(weight.data) is not torch.Tensor or torch.nn.utils.parametrize.is_parametrized(head):
        return f"the head's weight is a {type(weight.data).__name__} or computed from others"
    if head._forward_hooks or head._forward_pre_hooks:  # noqa: SLF001 - torch has no public name
        return "the head has hooks"
    return Matrix(weight.data, None if head.bias is None else head.bias.data)


def _angles_depend_on_batch(checkpoint: Checkpoint) -> bool:
    rope = getattr(checkpoint.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {entry.get("rope_type") for entry in (rope, *rope.values()) if isinstance(entry, dict)}
    return bool(kinds & _LENGTH_SENSITIVE_ROPE)
