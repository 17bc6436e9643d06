"""Reproducible pseudo-random numbers: any part of the population computes its own without the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def split_mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of integers (n,) -> (n,) by SplitMix64, a public-domain function by Sebastiano Vigna."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, *keys: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each tuple of keys: (n,) each -> (n,)."""
    mixed = split_mix(np.full(1, seed % (1 << 64), np.uint64))
    for key in keys:
        mixed = split_mix(mixed ^ key.astype(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
