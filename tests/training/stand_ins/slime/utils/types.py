"""slime's Sample, with the fields that a rollout of given tokens sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


@dataclass
class Sample:
    """A sample."""

    group_index: int | None = None
    index: int | None = None
    tokens: list[int] = field(default_factory=list)
    response_length: int = 0
    reward: float | None = None
    loss_mask: list[int] | None = None

    class Status(Enum):
        """How far it is."""

        PENDING = "pending"
        COMPLETED = "completed"

    status: Status = Status.PENDING
