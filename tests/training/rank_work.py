"""What ranks do in test_ranks.py; see ranks.py."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from logging.handlers import QueueHandler
from pathlib import Path
from queue import Queue
from typing import Any

import torch
import torch.distributed as dist

from qtune_service.errors import DataError, QTuneError
from qtune_service.training import QTuningPruner, vocab_parallel_scores
from qtune_service.training.distributed import Ranks, run_on_all_ranks, run_on_first_rank
from qtune_service.training.per_epoch import by_command, rescore_every_epoch, rescored
from qtune_service.training.token_scores import is_sharded
from tests.training.models import VOCAB, padded, ragged, tiny_llama

RATIOS = {"sample_keep_ratio": 0.4, "token_keep_ratio": 0.6, "bisect_max_iter": None}


def gradients(model: Any) -> list[torch.Tensor]:
    """Return the whole gradients of all parameters."""
    full = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    return [gradient.detach().clone() for gradient in full]


def one_step(model: Any, batches: list[dict[str, Any]], **options: Any) -> tuple[Any, list[torch.Tensor]]:
    """Prune, run forward and backward; (the step, gradients)."""
    step = QTuningPruner(**{**RATIOS, **options}).prune_step(model, batches)
    for batch in step.batches:
        step.loss(model(input_ids=batch["input_ids"]).logits, batch).backward()
    return step, gradients(model)


def share(rows: dict[str, list[list[int]]], sizes: list[int], rank: int) -> dict[str, Any]:
    """Return the rows of a rank."""
    begin = sum(sizes[:rank])
    return {name: values[begin : begin + sizes[rank]] for name, values in rows.items()}


@contextlib.contextmanager
def logged_lines() -> Iterator[list[str]]:
    """Yield the lines that are logged about pruning."""
    log, queue = logging.getLogger("qtune_service.training"), Queue[logging.LogRecord]()
    lines: list[str] = []
    handler = QueueHandler(queue)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        while not queue.empty():
            lines.append(queue.get().getMessage())


def data_parallel(kind: str, sizes: list[int], options: dict[str, Any]) -> dict[str, Any]:
    """Run a pruned step of DDP or FSDP2."""
    model = tiny_llama()
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        wrapped: Any = model
    else:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
    mine = share(ragged(sum(sizes), seed=21), sizes, dist.get_rank())
    with logged_lines() as lines:
        step, grads = one_step(wrapped, [padded(mine)], **options)
    again, _ = one_step(wrapped, [padded(mine)], **options)  # and training goes on
    record = step.record
    return {
        "gradients": grads,
        "counts": dict(record.counts),
        "num_tokens": step.num_tokens,
        "rows": int((step.batch["labels"] != -100).any(1).sum()),
        "kept": record.kept,
        "steps": (record.step, again.record.step),
        "lines": lines,
    }


def trainer_steps(kind: str, options: dict[str, Any], folder: str) -> dict[str, Any]:
    """Run some steps of a transformers Trainer: DDP by accelerate, or FSDP2 by transformers (accelerate shards on GPUs
    only).
    """
    from tests.training.trainers import run_trainer, weights

    model = fully_sharded(Path(folder) / "model") if kind == "fsdp" else None
    trainer, records = run_trainer(Path(folder), model=model, **options)
    return {
        "weights": weights(trainer),
        "records": [dict(record.counts) for record in records],
        "is_sharded": is_sharded(trainer.model_wrapped),
    }


def rescored_epochs(folder: str) -> dict[str, Any]:
    """Two epochs of a Trainer under DDP; a job chooses the rows before each."""
    from tests.jobs import DEMO_MODEL
    from tests.training.epoch_runs import JOB, demo_trainer, noting
    from tests.training.trainers import weights

    seen: list[tuple[int, ...]] = []
    jobs: list[str] = []

    def prune(model: str, output: str) -> None:
        jobs.append(Path(output).name)
        by_command(*JOB)(model, output)

    data = rescored(DEMO_MODEL, prune, f"{folder}/epoch-0")
    trainer = demo_trainer(data, Path(folder) / "run")
    trainer.data_collator = noting(seen)
    rescore_every_epoch(trainer, prune, folder)
    trainer.train()
    half = len(seen) // 2
    return {"jobs": jobs, "length": len(data), "epochs": [seen[:half], seen[half:]], "weights": weights(trainer)}


def long_work(limit_s: float, work_s: float) -> float:
    """Return how long a rank was busy with work that takes longer than a collective may."""
    group = dist.new_group(timeout=timedelta(seconds=limit_s))
    began = time.monotonic()
    run_on_first_rank(lambda: time.sleep(work_s), Ranks(group), heartbeat_s=0.3)
    return time.monotonic() - began


def failing_job(folder: str) -> tuple[str, str]:
    """Return the error of a rank for a job that cannot be run."""
    try:
        rescored("model", by_command(f"{folder}/nothing.jsonl", "--engine", "reference"), f"{folder}/none")
    except QTuneError as error:
        return type(error).__name__, str(error)
    raise AssertionError("it did not fail")


def failing_load() -> tuple[str, str]:
    """Return the error of a rank where the second one fails."""

    def load() -> None:
        if dist.get_rank() == 1:
            raise DataError("rank 1 sees no folder")

    try:
        run_on_all_ranks(load, Ranks())
    except QTuneError as error:
        return type(error).__name__, str(error)
    raise AssertionError("it did not fail")


def fully_sharded(folder: Path) -> Any:
    """Load the tiny model in shards."""
    from transformers import LlamaForCausalLM
    from transformers.distributed import DistributedConfig

    tiny_llama().save_pretrained(folder)  # by the first rank only
    dist.barrier()
    config = DistributedConfig(fsdp_size=dist.get_world_size())
    return LlamaForCausalLM.from_pretrained(folder, distributed_config=config)


def slime_data_parallel(parts_a_rollout: int) -> dict[str, Any]:
    """Slime's hook on every other row of a rollout."""
    from megatron.core import mpu

    from tests.training.slime_rollouts import rollout
    from tests.training.slime_rollouts import share as share_of

    mpu.data_parallel_group = dist.group.WORLD
    whole = rollout(parts_a_rollout=parts_a_rollout)
    return _after_slimes_hook(share_of(whole, list(range(dist.get_rank(), 24, dist.get_world_size()))))


def slime_context_parallel() -> dict[str, Any]:
    """Slime's hook where each rank holds every second score of all rows."""
    from megatron.core import mpu

    from tests.training.slime_rollouts import rollout

    rank = dist.get_rank()
    groups = [dist.new_group([each]) for each in range(dist.get_world_size())]
    mpu.data_parallel_group, mpu.context_parallel_size, mpu.context_parallel_rank = groups[rank], 2, rank
    data = rollout(parts_a_rollout=2)
    for name in ("log_probs", "entropy"):
        data[name] = [row[rank::2] for row in data[name]]
    return _after_slimes_hook(data)


def _after_slimes_hook(data: dict[str, Any]) -> dict[str, Any]:
    from qtune_service.training.slime import postprocess
    from tests.training.slime_rollouts import slime_args

    postprocess(slime_args(), 0, data)
    masks = [mask.tolist() for mask in data["loss_masks"]]
    return {"loss_masks": masks, "rollout_mask_sums": data["rollout_mask_sums"].tolist()}


def vocab_parallel(seed: int) -> dict[str, Any]:
    """Scores from this rank's half of the vocabulary, by plain shards and by DTensors."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from qtune_service.scoring.statistics import eager_partials, nll_and_entropy
    from qtune_service.training.token_scores import partials_of_logits

    torch.manual_seed(seed)
    logits, labels = torch.randn(50, VOCAB) * 4, torch.randint(VOCAB, (50,))
    first = 0 if dist.get_rank() == 0 else 40
    own = logits[:, :40] if dist.get_rank() == 0 else logits[:, 40:]
    mesh = init_device_mesh("cpu", (2,))
    spread = distribute_tensor(logits, mesh, [Shard(1)])
    return {
        "plain": vocab_parallel_scores(own, labels, first).numpy(),
        "dtensor": nll_and_entropy(partials_of_logits(spread, labels, eager_partials)).numpy(),
        "logits": logits.numpy(),
        "labels": labels.numpy(),
    }


def main() -> None:
    """RANKS PORT FOLDER RANK."""
    num_ranks, port, folder, rank = sys.argv[1:]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks}  # what torchrun sets
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).parent / "stand_ins"))
    dist.init_process_group("gloo", rank=int(rank), world_size=int(num_ranks))
    calls = pickle.loads((Path(folder) / "calls.pkl").read_bytes())
    results = [globals()[function](*arguments) for function, arguments in calls]
    (Path(folder) / f"{rank}.pkl").write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
