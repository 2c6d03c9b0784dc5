"""How many pairs of a query and a key may meet, and how many are computed where whole blocks are."""

from __future__ import annotations

import functools

import numpy as np

from polyhead.errors import SpecError
from polyhead.spec import AttentionSpec, Band, Pattern
from polyhead.spec.ranges import BlockState

QUERY_BLOCK = 128
"""Queries whose keys are computed together, which is what block kernels round up to."""


def allowed_pairs(spec: AttentionSpec, q_len: int, kv_len: int) -> int:
    """Count the pairs that may meet, over all heads, the last query standing at the last key.

    Args:
        spec: The mechanism.
        q_len: Number of queries.
        kv_len: Number of keys.

    Returns:
        The exact number.

    Raises:
        SpecError: If a number is negative, or there are more queries than keys.
    """
    if not 0 <= q_len <= kv_len:
        raise SpecError(f"{q_len} queries and {kv_len} keys: give 0 ≤ q_len ≤ kv_len")
    if not spec.pattern.per_head:
        return spec.num_heads * pattern_pairs(spec.pattern, q_len, kv_len)
    return sum(pattern_pairs(spec.pattern, q_len, kv_len, head=head) for head in range(spec.num_heads))


@functools.lru_cache(maxsize=1024)
def pattern_pairs(pattern: Pattern, q_len: int, kv_len: int, *, head: int = 0) -> int:
    """Count the pairs of one head.

    A band's are arithmetic; of others, ranges of keys that a block of queries sees whole are counted by their size and
    the rest pair by pair, so no ``q_len × kv_len`` matrix is formed.

    Args:
        pattern: The pattern.
        q_len: Number of queries.
        kv_len: Number of keys.
        head: The head.

    Returns:
        The number of pairs.
    """
    offset = kv_len - q_len
    if isinstance(pattern, Band):
        queries = np.arange(offset, kv_len)
        last = kv_len if pattern.right is None else np.minimum(queries + pattern.right + 1, kv_len)
        first = 0 if pattern.left is None else np.maximum(queries - pattern.left, 0)
        return int(np.sum(np.broadcast_to(last - first, q_len)))
    count = 0
    for start in range(offset, kv_len, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, kv_len)
        for part in pattern.key_ranges(start, stop, kv_len=kv_len, head=head):
            if part.state is BlockState.FULL:
                count += (stop - start) * (part.stop - part.start)
            else:
                block, keys = np.arange(start, stop), np.arange(part.start, part.stop)
                count += int(np.count_nonzero(pattern.allowed(block, keys, kv_len=kv_len, head=head)))
    return count


def computed_pairs(spec: AttentionSpec, q_len: int, kv_len: int) -> int:
    """Count the pairs that a block kernel computes, over all heads: what some query of a block of 128 sees, for all.

    Args:
        spec: The mechanism.
        q_len: Number of queries.
        kv_len: Number of keys.

    Returns:
        The number, at least `allowed_pairs` and at most ``num_heads · q_len · kv_len``.
    """
    heads = range(spec.num_heads) if spec.pattern.per_head else range(1)
    found = sum(_computed(spec.pattern, q_len, kv_len, head=head) for head in heads)
    return found * spec.num_heads // len(heads)


@functools.lru_cache(maxsize=1024)
def _computed(pattern: Pattern, q_len: int, kv_len: int, *, head: int) -> int:
    count = 0
    for start in range(kv_len - q_len, kv_len, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, kv_len)
        ranges = pattern.key_ranges(start, stop, kv_len=kv_len, head=head)
        count += (stop - start) * sum(part.stop - part.start for part in ranges)
    return count
