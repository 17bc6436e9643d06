"""The first use of the CPU's vector mathematics."""

from __future__ import annotations

import subprocess
import sys

from tests.jobs import DEMO_MODEL

PROGRAM = """
import torch
from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.scoring import process_environment
from qtune_service.scoring.reference import ReferenceScorer

shapes = {}
for name in process_environment.FUNCTIONS:
    def first(tensor, *rest, own=getattr(torch, name), name=name, **named):
        shapes.setdefault(name, tensor.numel())
        return own(tensor, *rest, **named)
    setattr(torch, name, first)
ReferenceScorer(ModelSpec(name=MODEL), EngineSpec())
assert len(shapes) == len(process_environment.FUNCTIONS), shapes
assert set(shapes.values()) == {1}, shapes
"""


def test_each_function_is_called_on_one_number_first() -> None:
    """Before a model is built, so that no threads make a first call together."""
    program = PROGRAM.replace("MODEL", repr(DEMO_MODEL))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
