"""Key ranges: how a pattern looks to a block of consecutive queries.

A layout is a list of disjoint, sorted ranges of keys; what no range covers is seen by no query of the block.
A few ranges describe a block whatever the sequence's length, where a grid of tiles would grow with its square.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple


class BlockState(enum.IntEnum):
    """How many of a rectangle's (query, key) pairs may meet; `&` is the minimum and `|` the maximum."""

    EMPTY = 0
    PARTIAL = 1
    FULL = 2


class KeyRange(NamedTuple):
    """Keys ``start`` to ``stop - 1``, and what a block of queries sees of them (never EMPTY)."""

    start: int
    stop: int
    state: BlockState


class Reach(NamedTuple):
    """How far back a query looks: at position p, from ``p - left`` on, and at the ``first`` keys of all.

    Attributes:
        left: How many earlier keys. None: any number.
        first: How many keys at the start, besides.
    """

    left: int | None
    first: int = 0

    def size(self) -> float:
        """Return how many keys a query sees at most, its own included."""
        return math.inf if self.left is None else self.left + 1 + self.first


class Repeat(NamedTuple):
    """A pattern that looks the same further on: moved by ``step``, queries and keys from ``start`` on meet as before.

    Attributes:
        step: By how many positions.
        start: The first position that moves; what keys before it are seen by may still go by the query's position.
    """

    step: int
    start: int = 0


def band_layout(first: tuple[int, int], last: tuple[int, int], kv_len: int) -> list[KeyRange]:
    """Lay out a window that slides with the query.

    Args:
        first: The key interval, half open, that the block's first query sees.
        last: The same for its last query.
        kv_len: Number of keys.

    Returns:
        The ranges: what some queries see around what all see.
    """
    all_see = (last[0], first[1])
    if all_see[0] >= all_see[1]:
        return clip([KeyRange(first[0], last[1], BlockState.PARTIAL)], kv_len)
    return clip(
        [
            KeyRange(first[0], all_see[0], BlockState.PARTIAL),
            KeyRange(*all_see, BlockState.FULL),
            KeyRange(all_see[1], last[1], BlockState.PARTIAL),
        ],
        kv_len,
    )


def clip(layout: Iterable[KeyRange], kv_len: int) -> list[KeyRange]:
    """Cut ranges to the keys that exist and drop the empty ones."""
    cut = (KeyRange(max(r.start, 0), min(r.stop, kv_len), r.state) for r in layout)
    return [r for r in cut if r.start < r.stop]


def merge(layouts: Sequence[Sequence[KeyRange]], rule: Callable[[list[BlockState]], BlockState]) -> list[KeyRange]:
    """Combine layouts key by key.

    Args:
        layouts: The layouts of the parts.
        rule: ``min`` for an intersection of patterns, ``max`` for a union.

    Returns:
        The combined layout, adjacent ranges of one state joined.
    """
    edges = sorted({edge for layout in layouts for r in layout for edge in (r.start, r.stop)})
    merged: list[KeyRange] = []
    readers = [_StateReader(layout) for layout in layouts]
    for start, stop in pairwise(edges):
        state = rule([reader.at(start) for reader in readers])
        if state is BlockState.EMPTY:
            continue
        if merged and merged[-1].stop == start and merged[-1].state is state:
            start = merged.pop().start
        merged.append(KeyRange(start, stop, state))
    return merged


def state_of(layout: Sequence[KeyRange], start: int, stop: int) -> BlockState:
    """Return the state of keys ``start`` to ``stop - 1`` under a layout."""
    covered = clip((KeyRange(r.start - start, r.stop - start, r.state) for r in layout), stop - start)
    if not covered:
        return BlockState.EMPTY
    full = sum(r.stop - r.start for r in covered if r.state is BlockState.FULL)
    return BlockState.FULL if full == stop - start else BlockState.PARTIAL


class _StateReader:
    """Reads a layout from its first key to its last: the states of n keys cost n steps, not n times the ranges."""

    def __init__(self, layout: Sequence[KeyRange]) -> None:
        self._ranges = iter(layout)
        self._range = next(self._ranges, None)

    def at(self, key: int) -> BlockState:
        """Return a key's state; no key is smaller than the one before."""
        while self._range is not None and self._range.stop <= key:
            self._range = next(self._ranges, None)
        return self._range.state if self._range is not None and self._range.start <= key else BlockState.EMPTY
