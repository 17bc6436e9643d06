"""Mid-ranks of a large array, as integers.

The method compares ranks of two columns with each other and with a bound. Mid-ranks with ties are multiples of a
half, so all of them are held doubled: 2N * (midrank - 0.5) / N is an integer from 1 to 2N - 1, and every comparison
is exact. Tied values share first + last + 1, where these are their 0-based places in sorted order.

An index sort of 1e8 floats jumps through memory and takes twice as long as what is done here: pack the leading
bits of each value and its index into one 64-bit word, sort the words in place (numpy sorts plain integers with
SIMD), then walk over the result in blocks that fit the cache and settle there what the leading bits left open.
Beside the input this needs 8 bytes a value, and 4 for the result. The trade-off: a block is never cut inside a run of
equal leading bits, so values that differ only far behind the point, in bulk, cost memory in proportion to such a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 18  # values worked on at a time: temporaries of 2 MiB stay in the cache
_SIGN = 1 << 63

DoubleRanks = NDArray[np.unsignedinteger[Any]]
"""(N,) doubled mid-ranks: uint32 while 2N fits, else uint64."""


def blocks(length: int) -> Iterator[slice]:
    """Slices that cover `length` elements, a block each."""
    return (slice(lo, min(lo + BLOCK, length)) for lo in range(0, length, BLOCK))


def rank_type(num_samples: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The integers that hold the doubled mid-ranks of a population."""
    return np.dtype(np.uint32 if 2 * num_samples < 1 << 32 else np.uint64)


def double_midranks(x: NDArray[np.floating[Any]]) -> DoubleRanks:
    """2N * (midrank - 0.5) / N of finite values (N,), ties sharing their average."""
    values = np.ascontiguousarray(x, dtype=np.float64)
    count = len(values)
    ranks: DoubleRanks = np.empty(count, dtype=rank_type(count))
    if not count:
        return ranks
    index_bits = (count - 1).bit_length()
    words = _packed(values, index_bits)
    words.sort()
    index_mask = np.uint64((1 << index_bits) - 1)
    lo = 0
    while lo < count:
        last = min(lo + BLOCK, count) - 1
        hi = last + int(np.searchsorted(words[last:], words[last] | index_mask, side="right"))
        words[lo:hi] &= index_mask  # in place: what is left is the index of each value
        _rank_run(values, words[lo:hi].view(np.int64), lo, ranks)
        lo = hi
    return ranks


def _packed(values: NDArray[np.float64], index_bits: int) -> NDArray[np.uint64]:
    """Words (N,) that sort by the leading bits of their value, then by index."""
    low, high = (int(_ordered(edge)[0]) for edge in (values.min(keepdims=True), values.max(keepdims=True)))
    shift = np.uint64(max(0, (high - low).bit_length() + index_bits - 64))
    words = np.empty(len(values), dtype=np.uint64)
    for block in blocks(len(values)):
        leading = (_ordered(values[block]) - np.uint64(low)) >> shift
        words[block] = leading << np.uint64(index_bits)
        words[block] |= np.arange(block.start, block.stop, dtype=np.uint64)
    return words


def _ordered(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Integers in the order of the floats: IEEE 754 bits, with negative numbers turned round."""
    bits = (values + 0.0).view(np.uint64)  # + 0.0 turns -0.0, which equals 0.0, into it
    return np.where(bits >= _SIGN, ~bits, bits | np.uint64(_SIGN))


def _rank_run(values: NDArray[np.float64], index: NDArray[np.int64], lo: int, ranks: DoubleRanks) -> None:
    """Write the ranks of the values that fill the places `lo`, `lo + 1`, ... of the sorted order."""
    run = values[index]
    if run.min() == run.max():
        ranks[index] = 2 * lo + len(run)
        return
    order = np.argsort(run)
    run, index = run[order], index[order]
    first = np.flatnonzero(np.concatenate(([True], run[1:] != run[:-1])))  # where each distinct value starts
    end = np.append(first[1:], len(run))
    ranks[index] = np.repeat((2 * lo + first + end).astype(ranks.dtype), end - first)
