"""How many pairs of a query and a key may meet, and how many are computed where whole blocks are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

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

    A band's are arithmetic, and others are counted from the lists or ranges of keys that some queries see, so no
    ``q_len × kv_len`` matrix is formed.

    Args:
        pattern: The pattern.
        q_len: Number of queries.
        kv_len: Number of keys.
        head: The head.

    Returns:
        The number of pairs.
    """
    if isinstance(pattern, Band):
        return _of_blocks(pattern, kv_len - q_len, q_len, kv_len, size=1)
    if (in_units := _in_units(pattern, q_len, kv_len)) is not None:
        size = pattern.unit
        return size**2 * pattern_pairs(in_units, q_len // size, kv_len // size, head=head)
    unit = min(pattern.unit, QUERY_BLOCK)  # the queries of a unit see the same ranges, but for a few
    is_listed = unit == 1 and pattern.degree is not None and pattern.degree < kv_len and pattern.repeat is None
    count, step = (_in_lists, QUERY_BLOCK) if is_listed else (_in_ranges, unit if unit > 1 else QUERY_BLOCK)
    return _summed(pattern, q_len, kv_len, lambda start, stop: count(pattern, start, stop, kv_len, head), size=step)


def _in_units(pattern: Pattern, q_len: int, kv_len: int) -> Pattern | None:
    """Return a pattern that treats runs of tokens alike as one of runs, if queries and keys are whole ones."""
    if pattern.unit == 1 or not q_len or q_len % pattern.unit or kv_len % pattern.unit:
        return None
    return pattern.in_units(pattern.unit, kv_len=kv_len)


def _of_lists(pattern: Pattern, q_len: int, kv_len: int, head: int, unit: int) -> int:
    """Count what a pattern of runs lets some query of each block of queries see, for all of these, in runs."""
    keys, every = pattern.neighbours(kv_len - q_len, kv_len, kv_len=kv_len, head=head)
    step = QUERY_BLOCK // unit
    missing = -q_len % step  # a last block of fewer queries is filled up by such as see nothing
    keys = np.pad(keys, ((0, missing), (0, 0)), constant_values=-1).reshape(-1, step * keys.shape[1])
    keys = np.sort(keys, axis=1)
    seen = np.count_nonzero((keys >= 0) & (np.diff(keys, axis=1, prepend=-1) != 0), axis=1)
    seen[np.pad(every, (0, missing)).reshape(-1, step).any(axis=1)] = kv_len
    queries = np.full(len(seen), step)
    queries[-1] -= missing
    return int(np.sum(queries * seen))


def _of_blocks(band: Band, start: int, count: int, kv_len: int, *, size: int) -> int:
    """Count the keys from the first that a block's first query sees to the last of its last, for each of its queries.

    There are ``count`` blocks of ``size`` queries from ``start`` on.
    """
    ends = count * kv_len
    if band.right is not None:  # the least of kv_len and each block's last query + right + 1
        end = start + size + band.right
        ends = count * end + size * count * (count - 1) // 2 - _ramp(end - kv_len, size, count)
    begins = 0 if band.left is None else _ramp(start - band.left, size, count)
    return size * (ends - begins)


def _ramp(first: int, step: int, count: int) -> int:
    """Return the sum of ``max(0, first + step · n)`` over the whole numbers n below ``count``."""
    below = min(count, max(0, -(first // step)))
    left = count - below
    return left * (first + step * below) + step * left * (left - 1) // 2


def _summed(
    pattern: Pattern, q_len: int, kv_len: int, count: Callable[[int, int], int], *, size: int, anchor: int = 0
) -> int:
    """Add up what blocks of the last ``q_len`` queries have; where they have the same further on, one is counted.

    Blocks begin at ``anchor`` and every ``size`` queries after it, the first one where the queries begin.
    """
    total, start = 0, kv_len - q_len
    settled, period = math.inf, size
    if pattern.repeat is not None and pattern.reach.left is not None and pattern.is_causal:
        settled, period = pattern.repeat.start + pattern.reach.left, math.lcm(size, pattern.repeat.step)
    while start < kv_len:
        alike = (kv_len - start) // period if start >= settled and (start - anchor) % size == 0 else 0
        end = start + period if alike else min(start + size - (start - anchor) % size, kv_len)
        blocks = range(start, end, size) if alike else [start]
        total += max(1, alike) * sum(count(block, min(block + size, end)) for block in blocks)
        start += alike * period if alike else end - start
    return total


def _in_lists(pattern: Pattern, start: int, stop: int, kv_len: int, head: int) -> int:
    """Count what some queries see from the list of each one's keys; of those without a list, pair by pair."""
    keys, every = pattern.neighbours(start, stop, kv_len=kv_len, head=head)
    listed = np.count_nonzero(keys[~every] >= 0)
    if not every.any():
        return int(listed)
    queries = np.arange(start, stop)[every]
    return int(listed + np.count_nonzero(pattern.allowed(queries, np.arange(kv_len), kv_len=kv_len, head=head)))


def _in_ranges(pattern: Pattern, start: int, stop: int, kv_len: int, head: int) -> int:
    """Count what some queries see from ranges of keys; of those that they do not all see whole, pair by pair."""
    count = 0
    for part in pattern.key_ranges(start, stop, kv_len=kv_len, head=head):
        if part.state is BlockState.FULL:
            count += (stop - start) * (part.stop - part.start)
        else:
            queries, keys = np.arange(start, stop), np.arange(part.start, part.stop)
            count += int(np.count_nonzero(pattern.allowed(queries, keys, kv_len=kv_len, head=head)))
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
    if isinstance(pattern, Band):
        blocks, rest = divmod(q_len, QUERY_BLOCK)
        whole = _of_blocks(pattern, kv_len - q_len, blocks, kv_len, size=QUERY_BLOCK)
        return whole + (_of_blocks(pattern, kv_len - rest, 1, kv_len, size=rest) if rest else 0)

    in_units = _in_units(pattern, q_len, kv_len)
    if in_units is not None and in_units.degree is not None and QUERY_BLOCK % pattern.unit == 0:
        return pattern.unit**2 * _of_lists(in_units, q_len // pattern.unit, kv_len // pattern.unit, head, pattern.unit)

    def count(start: int, stop: int) -> int:
        ranges = pattern.key_ranges(start, stop, kv_len=kv_len, head=head)
        return (stop - start) * sum(part.stop - part.start for part in ranges)

    return _summed(pattern, q_len, kv_len, count, size=QUERY_BLOCK, anchor=kv_len - q_len)
