"""Estimate the cost of a job before it runs: encode its first records as the job would, and compute the rest.

The first records represent all, which holds for shuffled data only. The number of records is known for Parquet, and
estimated by file size for plain JSON. Time is operations divided by the device's peak and by the share of the peak that
the engine reaches. That share is the weakest part, so times are ranges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qtune_service.config import JobSpec
from qtune_service.errors import DataError, SpecError
from qtune_service.ingest.discovery import discover
from qtune_service.ingest.file_kinds import Kind
from qtune_service.ingest.hub_dataset import pinned
from qtune_service.ingest.jsonl import RecordProblem
from qtune_service.ingest.reader import FirstRecord, first_records
from qtune_service.ingest.row_files import num_rows
from qtune_service.pipeline.cost import Lengths, ModelCost, Needs, devices_of, needs_of
from qtune_service.scoring.model_config import describe_model
from qtune_service.tokenize.encoded_batch import Encoded
from qtune_service.tokenize.encoder import Encoder

ASSUMED_SHARE, ASSUMED_RANGE = 0.5, (0.35, 0.6)
"""Share of a GPU's peak. Nothing is measured yet. The goal is 0.6 on 7B."""
MEASURED_RANGE = 0.15
"""Relative difference between two runs on one machine."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its data sheet: dense bf16, without sparsity."""

    peak_tflops: float
    memory_gib: float


DEVICES = {
    "a100": Device(312, 80),
    "b200": Device(2250, 180),
    "h100": Device(989, 80),
    "h200": Device(989, 141),
    "l4": Device(121, 24),
    "l40s": Device(362, 48),
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """The devices of an estimate."""

    device: Device
    number: int = 1
    share: float | None = None
    """Measured share of the peak. None: assumed."""
    price_per_hour: float | None = None

    @property
    def shares(self) -> tuple[float, float, float]:
        """Return the low, likely and high share."""
        if self.share is None:
            return ASSUMED_RANGE[0], ASSUMED_SHARE, ASSUMED_RANGE[1]
        return self.share * (1 - MEASURED_RANGE), self.share, min(self.share * (1 + MEASURED_RANGE), 1.0)


@dataclass(frozen=True, slots=True)
class Size:
    """The samples of an estimate."""

    samples: int
    is_exact: bool
    lengths: Lengths
    num_rejected: int = 0
    """Rejected records among those encoded. The same proportion of all records is subtracted."""


@dataclass(frozen=True, slots=True)
class Range:
    """A likely value with a lower and an upper bound."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of a job."""

    samples: int
    samples_are_counted: bool
    looked_at: int
    tokens: float
    trained_tokens: float
    flops: float
    gpu_hours: Range
    gpus: int
    hours: Range
    cost: Range | None
    gpus_per_model: int
    weight_bytes: float
    needs: Needs
    warnings: list[str]


def estimate(size: Size, model: ModelCost, hardware: Hardware, *, keep_ratio: float, dtype_bytes: int = 2) -> Estimate:
    """Compute an estimate from sizes alone, without reading data."""
    looked_at = len(size.lengths.tokens)
    scored = round(size.samples * looked_at / (looked_at + size.num_rejected))
    per_sample, error = size.lengths.flops_per_sample(model)
    tokens = scored * sum(size.lengths.tokens) / looked_at
    gpu_hours = _gpu_hours(scored * per_sample, error / per_sample, hardware)
    weights = model.held * dtype_bytes
    together = devices_of(weights, hardware.device.memory_gib * 2**30)
    in_use = max(hardware.number // together, 1) * together
    hours = _scaled(gpu_hours, 1 / in_use)
    return Estimate(
        samples=scored,
        samples_are_counted=size.is_exact and not size.num_rejected,
        looked_at=looked_at,
        tokens=tokens,
        trained_tokens=scored * sum(size.lengths.trained) / looked_at,
        flops=scored * per_sample,
        gpu_hours=gpu_hours,
        gpus=in_use,
        hours=hours,
        cost=None if hardware.price_per_hour is None else _scaled(gpu_hours, hardware.price_per_hour),
        gpus_per_model=together,
        weight_bytes=weights,
        needs=needs_of(scored, tokens, keep_ratio),
        warnings=list(_warnings(size, hardware, together)),
    )


def _gpu_hours(flops: float, error: float, hardware: Hardware) -> Range:
    low, likely, high = hardware.shares
    each = flops / (hardware.device.peak_tflops * 1e12) / 3600
    return Range(each * max(1 - error, 0) / high, each / likely, each * (1 + error) / low)


def _scaled(hours: Range, factor: float) -> Range:
    return Range(hours.low * factor, hours.likely * factor, hours.high * factor)


def _warnings(size: Size, hardware: Hardware, together: int) -> Iterable[str]:
    if hardware.share is None:
        yield "The share of the peak is assumed, not measured: give --share as measured in one of your runs."
    if not size.is_exact:
        yield "The number of samples is estimated by the size of the files: give --samples if you know it."
    if size.num_rejected:
        yield f"{size.num_rejected} of the first {size.num_rejected + len(size.lengths.tokens)} records are rejected."
    if together > hardware.number:
        yield f"The model's weights need {together} GPUs, so times are for that many."
    elif hardware.number % together:
        yield f"Models on {together} GPUs each leave {hardware.number % together} of {hardware.number} idle."


# --- the data


def size_of(spec: JobSpec, looked_at: int, samples: int | None) -> Size:
    """Encode the first records. Raise DataError, and SpecError where the number of samples cannot be estimated."""
    spec = spec.model_copy(update={"input": pinned(spec.input)})
    info = describe_model(spec.model)
    encoder = Encoder(spec.model, spec.input, max_model_len=info.max_model_len, vocab_size=info.vocab_size)
    records = first_records(spec.input, looked_at)
    found = [_encoded(encoder, record) for record in records]
    good = [one.sample for one in found if one is not None]
    if not good:
        raise DataError(f"none of the first {len(found)} records can be used", "`qtune preview` shows why.")
    lengths = Lengths([len(one.input_ids) for one in good], [int(one.loss_mask[1:].sum()) for one in good])
    number, is_exact = (samples, True) if samples is not None else _count(spec, records, looked_at)
    return Size(number, is_exact, lengths, len(found) - len(good))


def _encoded(encoder: Encoder, found: FirstRecord) -> Encoded | None:
    if isinstance(found.record, RecordProblem):
        return None
    outcome = encoder.encode_batch([found.record], found.format)[0]
    return outcome if isinstance(outcome, Encoded) else None


def _count(spec: JobSpec, records: Sequence[FirstRecord], looked_at: int) -> tuple[int, bool]:
    """Return the number of records of the input, and whether it is exact."""
    if len(records) < looked_at:
        return len(records), True  # there are no more
    if spec.input.take:
        raise SpecError("the number of records of some categories is not known", "Give --samples.")
    files = discover(spec.input.paths, spec.input.split)
    rows = sum(num_rows(file) for file in files if file.is_in_rows)
    others = [file for file in files if not file.is_in_rows]
    packed = [file.name for file in others if file.compression is not None]
    if packed:
        raise SpecError(f"{packed[0]} is compressed: its number of records is not known", "Give --samples.")
    number = rows + round(sum(file.size_bytes / _record_bytes(records, file.kind) for file in others))
    return min(number, spec.input.limit or number), not others or number == spec.input.limit


def _record_bytes(records: Sequence[FirstRecord], kind: Kind) -> float:
    """Return the mean size of a record as a line of JSON or a row of CSV."""
    good = [one.record for one in records if not isinstance(one.record, RecordProblem)]
    texts = (json.dumps(list(one.values()) if kind == "csv" else one, ensure_ascii=False, default=str) for one in good)
    sizes = [len(text.encode()) + 1 for text in texts]
    return sum(sizes) / len(sizes) if sizes else math.inf
