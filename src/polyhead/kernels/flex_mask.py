"""What FlexAttention is told of a pattern: blocks of pairs that meet, and a rule for the single pair.

Blocks come from ``pattern.key_ranges``, one question for each block of queries, and those of short links from the
links themselves: no matrix of pairs is made. Inside a block that some pairs leave out, the rule answers: the pattern's
own ``allowed``, for one query and one key, and a search in a table where a pattern is made of links.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.kernels.common import Call
from polyhead.spec.combined import Combined
from polyhead.spec.links import Linked
from polyhead.spec.pattern import Pattern
from polyhead.spec.ranges import BlockState, KeyRange

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries, and keys, in a block: FlexAttention's own size."""

Place = Callable[[Tensor, Tensor], Tensor]
"""Returns the position of a batch entry's token."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Says whether a pair may meet: batch entry, head, number of the query, position of the query, of the key."""


def block_mask(call: Call) -> BlockMask:
    """Return which blocks of pairs meet, whole or in part, with the rule for a single pair."""
    from torch.nn.attention.flex_attention import BlockMask

    states = block_states(call)
    partial, full = (_listed(states == state) for state in (BlockState.PARTIAL, BlockState.FULL))
    lengths = (call.case.q_len, call.case.kv_len)
    return BlockMask.from_kv_blocks(*partial, *full, BLOCK_SIZE=BLOCK, mask_mod=pair_rule(call), seq_lengths=lengths)


def block_states(call: Call) -> Tensor:
    """Return a `BlockState` for each block of pairs, ``[batch or 1, num_heads or 1, query blocks, key blocks]``.

    Where positions are given, nothing is known of them here: every block is PARTIAL as far as the pattern goes.
    """
    case, device = call.case, call.key.device
    if case.aligned:
        states = torch.from_numpy(_pattern_states(case.spec.pattern, call))[None].to(device)
    else:
        rows, columns = -(-case.q_len // BLOCK), -(-case.kv_len // BLOCK)
        states = torch.full((1, 1, rows, columns), BlockState.PARTIAL, dtype=torch.int8, device=device)
    if call.key_mask is not None:
        seen = _in_blocks(call.key_mask)
        states = states.minimum(_state(full=seen.all(dim=-1), empty=~seen.any(dim=-1))[:, None, None])
    if call.segments is not None:
        low, high = _in_blocks(call.segments).aminmax(dim=-1)
        apart = (low[:, :, None] > high[:, None, :]) | (low[:, None, :] > high[:, :, None])
        alike = (low[:, :, None] == high[:, None, :]) & (low[:, None, :] == high[:, :, None])
        states = states.minimum(_state(full=alike, empty=apart)[:, None])
    return states


def places(call: Call) -> tuple[Place, Place]:
    """Return the positions of queries and of keys, from their numbers; what can be counted is not looked up."""
    case = call.case
    return (
        _counted if case.aligned and case.q_len == case.kv_len else _looked_up(call.query_positions),
        _counted if case.aligned else _looked_up(call.key_positions),
    )


def pair_rule(call: Call) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return whether a pair may meet, from the numbers of batch entry, head, query and key."""
    rule = _rule(call.case.spec.pattern, call)
    query_at, key_at = places(call)
    key_mask, segments = call.key_mask, call.segments

    def may_meet(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        allowed = rule(batch, head, query, query_at(batch, query), key_at(batch, key))
        if key_mask is not None:
            allowed = allowed & key_mask[batch, key]
        if segments is not None:
            allowed = allowed & (segments[batch, query] == segments[batch, key])
        return allowed

    return may_meet


# --- blocks


def _pattern_states(pattern: Pattern, call: Call) -> NDArray[np.int8]:
    """Return the states of all blocks, ``[num_heads or 1, query blocks, key blocks]``."""
    if isinstance(pattern, Combined):
        combine = np.maximum if pattern.union else np.minimum
        return functools.reduce(combine, [_pattern_states(part, call) for part in pattern.parts])
    heads = range(call.case.spec.num_heads if pattern.per_head else 1)
    if isinstance(pattern, Linked) and pattern.unit < BLOCK:
        return np.stack([_linked_states(pattern, call, head) for head in heads])
    starts = range(0, call.case.q_len, BLOCK)
    return np.stack([[_row(pattern, call, head, start) for start in starts] for head in heads])


def _linked_states(pattern: Linked, call: Call, head: int) -> NDArray[np.int8]:
    """Return the states of links shorter than a block, all at once: hundreds would be ranges of a row's own."""
    q_len, kv_len = call.case.q_len, call.case.kv_len
    links = pattern.links(np.arange(kv_len - q_len, kv_len), kv_len=kv_len, head=head)
    first = links * pattern.unit
    exist = (links >= 0) & (first < kv_len)
    rows = np.broadcast_to(np.arange(q_len)[:, None] // BLOCK, links.shape)[exist]
    states = np.full((-(-q_len // BLOCK), -(-kv_len // BLOCK)), BlockState.EMPTY, dtype=np.int8)
    for key in (first, np.minimum(first + pattern.unit, kv_len) - 1):  # a link lies in two blocks at most
        states[rows, key[exist] // BLOCK] = BlockState.PARTIAL
    return states


def _row(pattern: Pattern, call: Call, head: int, start: int) -> NDArray[np.int8]:
    """Return the states of the blocks of keys, for the block of queries from one on."""
    case = call.case
    first, stop = case.kv_len - case.q_len, min(start + BLOCK, case.q_len)
    layout = pattern.key_ranges(first + start, first + stop, kv_len=case.kv_len, head=head)
    if stop < start + BLOCK:  # what is cut off is not FULL
        layout = [one._replace(state=BlockState.PARTIAL) for one in layout]
    return _states_of(layout, -(-case.kv_len // BLOCK))


def _states_of(layout: Sequence[KeyRange], columns: int) -> NDArray[np.int8]:
    """Return the states of blocks of keys under a layout; one that ends past the last key is never FULL."""
    seen = _keys_in_blocks(layout, columns)
    seen_by_all = _keys_in_blocks([one for one in layout if one.state is BlockState.FULL], columns)
    states = np.where(seen_by_all == BLOCK, BlockState.FULL, np.where(seen > 0, BlockState.PARTIAL, BlockState.EMPTY))
    return states.astype(np.int8)


def _keys_in_blocks(layout: Sequence[KeyRange], columns: int) -> NDArray[np.float64]:
    """Return how many keys of each block some ranges hold: a sum that rises by one a key inside a range."""
    bounds = np.array([(0, 0)] + [(start, stop) for start, stop, _ in layout]).ravel()
    rises = np.diff(bounds, prepend=0)
    rises[::2] = 0  # from the end of a range to the next one's start
    return np.diff(np.interp(BLOCK * np.arange(columns + 1), bounds, rises.cumsum()))


def _in_blocks(tokens: Tensor) -> Tensor:
    """Lay ``[batch, len]`` out as ``[batch, blocks, BLOCK]``; the last block is filled up with the last token."""
    length = tokens.shape[1]
    numbers = torch.arange(-(-length // BLOCK) * BLOCK, device=tokens.device).clamp(max=length - 1)
    blocks: Tensor = tokens[:, numbers].unflatten(1, (-1, BLOCK))
    return blocks


def _state(*, full: Tensor, empty: Tensor) -> Tensor:
    states = torch.full(full.shape, BlockState.PARTIAL, dtype=torch.int8, device=full.device)
    return states.masked_fill(full, BlockState.FULL).masked_fill(empty, BlockState.EMPTY)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks each row has, and their numbers before those of the others."""
    chosen = blocks.int()
    numbers = chosen.argsort(dim=-1, descending=True, stable=True).int()
    return chosen.sum(dim=-1, dtype=torch.int32), numbers


# --- single pairs


def _rule(pattern: Pattern, call: Call) -> Rule:
    if isinstance(pattern, Combined):
        rules = tuple(_rule(part, call) for part in pattern.parts)
        combine = operator.or_ if pattern.union else operator.and_
        return lambda *pair: functools.reduce(combine, [rule(*pair) for rule in rules])
    if isinstance(pattern, Linked):
        return _linked(pattern, call)
    kv_len = call.case.kv_len

    # a spec's numbers come as defaults: so they are constants of the compiled code, which closures may turn into inputs
    def allowed(*pair: Tensor, pattern: Pattern = pattern) -> Tensor:
        _, _, _, query_position, key_position = pair
        met: Tensor = pattern.allowed(query_position[None], key_position[None], kv_len=kv_len)
        return met[0, 0]

    return allowed


def _linked(pattern: Linked, call: Call) -> Rule:
    """Return the rule of links: a binary search among those of the query's unit, which are sorted."""
    table, rows = _link_table(pattern, call)
    row_at, per_head = _looked_up(rows), pattern.per_head
    steps = tuple(2**power for power in reversed(range(table.shape[-1].bit_length() - 1)))

    def linked(*pair: Tensor, unit: int = pattern.unit, past: bool = pattern.is_causal, steps: Any = steps) -> Tensor:
        batch, head, query, query_position, key_position = pair
        head = head if per_head else torch.zeros_like(head)
        row, wanted = row_at(batch, query), key_position // unit
        place = torch.zeros_like(row)
        for step in steps:
            place = torch.where(table[head, row, place + step] <= wanted, place + step, place)
        met = (table[head, row, place] == wanted) & (key_position >= 0)
        return met & (key_position <= query_position) if past else met

    return linked


def _link_table(pattern: Linked, call: Call) -> tuple[Tensor, Tensor]:
    """Return the links of every unit of queries, and each query's row among them.

    Returns:
        ``[num_heads or 1, units, links]``, sorted, with -1 before them up to a power of two; ``[batch or 1, q_len]``.
    """
    units, rows = torch.unique(call.query_positions // pattern.unit, return_inverse=True)
    heads: Iterable[int] = range(call.case.spec.num_heads if pattern.per_head else 1)
    found: list[Any] = [
        pattern.links(units * pattern.unit, kv_len=call.case.kv_len, head=head).astype(np.int32) for head in heads
    ]
    links = np.sort(np.stack(found), axis=-1)
    width = 1 << max(0, links.shape[-1] - 1).bit_length()
    filled = np.pad(links, ((0, 0), (0, 0), (width - links.shape[-1], 0)), constant_values=-1)
    return torch.from_numpy(filled).to(rows.device), rows


def _counted(batch: Tensor, number: Tensor) -> Tensor:
    return number


def _looked_up(positions: Tensor) -> Place:
    if len(positions) > 1:
        return lambda batch, number: positions[batch, number]
    of_all = positions[0]
    return lambda batch, number: of_all[number]
