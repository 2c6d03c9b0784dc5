"""The keys of each query gathered, where each has few of its own: links of single tokens, and what is narrow beside.

Tiles and blocks read every key that one of their queries sees, which for scattered links is nearly all of them. Here
time and what is gathered go by the links alone, ``q_len × links × width``, some queries at a time. The lists of keys
are kept between forward and backward, the gathered numbers are not. Queries that see all keys go as whole rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from polyhead.kernels.blocks import Block, in_blocks
from polyhead.kernels.common import EVERY, Call, Case, Kernel

GATHERED_ELEMENTS = 2**20
"""Numbers of keys and values that are gathered at once, 4 MiB in float32."""

ROW_ELEMENTS = 2**20
"""Scores that are formed at once, of queries that see all keys."""

APART_COST, SHARED_COST = 3, 20
"""How many keys a tile reads in the time that one is gathered, where heads see different keys or the same.

Measured against the tiled kernel, with 4096 tokens, 8 heads of width 64 and one thread, forward and with backward:

- heads apart, a mask for each: 7 times the keys read take 3.6 and 2.2 times as long, 26 times 8.4 and 4.1 times;
- one mask for all heads: 11 times the keys take 0.95 and 0.67 times as long, 25 times 1.7 and 1.1 times.
"""

TILE_ROWS = 128
"""Queries in a tile or a block that would be computed otherwise."""


def refuse(case: Case) -> str | None:
    """Return why gathering does not compute this case, or None."""
    if case.dropout:
        return "dropout is in the plain kernel alone: the backward pass would have to draw it again"
    if case.weights:
        return "a piece's weights are not kept"
    if case.compiled:
        return "its lists go by the lengths, which a compiled graph leaves open"
    if case.state:
        return "a cache of sums has no keys left to gather"
    if not case.aligned:
        return "keys are listed for positions that count on, and these are given"
    if case.spec.pattern.degree is None:
        return "its pattern bounds no query's keys, so that there is no short list of them"
    return None


def pass_over(case: Case) -> str | None:
    """Return why tiles or blocks are quicker, or None."""
    if case.device != "cpu":
        return f"what gathering costs has been measured on the CPU alone, not on {case.device}"
    pattern = case.spec.pattern
    if pattern.repeat is not None:
        # even two keys of the 129 that a window's tile reads: gathered 0.7 times as fast as tiled, 1.3 as blockwise
        return "a pattern that looks the same further on is quicker in tiles, whose masks are made once"
    worth = (APART_COST if pattern.per_head else SHARED_COST) * (pattern.degree or 0)
    first = max(0, case.kv_len - case.q_len)
    middle = first + case.q_len // 2
    stop = max(middle + 1, min(middle + TILE_ROWS, first + case.q_len))
    read = sum(r.stop - r.start for r in pattern.key_ranges(middle, stop, kv_len=case.kv_len))
    if worth > read:
        return f"queries that lie together see no more than {read:,} keys, quicker read in their order than gathered"
    return None


def run(call: Call) -> tuple[Tensor, None]:
    """Compute some queries after others; see `Kernel.run`."""
    return in_blocks(call, list(_blocks(call))), None


def _blocks(call: Call) -> Iterator[Block]:
    """Return blocks that hold each query of each head once."""
    case, pattern = call.case, call.case.spec.pattern
    heads = range(case.spec.num_heads) if pattern.per_head else [None]
    first, step = case.kv_len - case.q_len, _queries_at_once(call)
    for head, start in itertools.product(heads, range(0, case.q_len, step)):
        stop = min(start + step, case.q_len)
        keys, every = pattern.neighbours(first + start, first + stop, kv_len=case.kv_len, head=head or 0)
        lists = torch.from_numpy(keys).to(call.query.device)
        changes = np.flatnonzero(every[1:] != every[:-1]) + 1
        for low, high in itertools.pairwise([0, *changes.tolist(), stop - start]):
            if every[low]:
                yield from _whole_rows(call, head, start + low, start + high)
            else:
                yield Block(slice(start + low, start + high), lists[low:high], head)


def _queries_at_once(call: Call) -> int:
    spec = call.case.spec
    width = spec.num_maps * spec.qk_head_dim + spec.v_head_dim
    return max(1, GATHERED_ELEMENTS // max(1, _sequences(call) * width * (spec.pattern.degree or 0)))


def _whole_rows(call: Call, head: int | None, start: int, stop: int) -> Iterator[Block]:
    """Return the blocks of queries that may see all keys, as many together as their scores allow."""
    step = max(1, ROW_ELEMENTS // max(1, _sequences(call) * call.case.spec.num_maps * call.case.kv_len))
    for low in range(start, stop, step):
        yield Block(slice(low, min(low + step, stop)), EVERY, head)


def _sequences(call: Call) -> int:
    """Return how many times a query is computed in one block: for each sequence and each head in it."""
    return len(call.query) * (1 if call.case.spec.pattern.per_head else call.case.spec.num_heads)


KERNEL = Kernel("gathered", "each query's own few keys, gathered", refuse, run, pass_over)
