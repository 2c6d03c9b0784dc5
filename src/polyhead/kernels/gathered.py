"""The keys of each query gathered, where each has few of its own: links of single tokens, and what is narrow beside.

Tiles and blocks read every key that one of their queries sees, which for scattered links is nearly all of them. Here
time and what is gathered go by the links alone, ``q_len × links × width``, some queries at a time. The lists of keys
are kept between forward and backward, the gathered numbers are not. Queries that see all keys go as whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from polyhead.kernels.blocks import Block, in_blocks
from polyhead.kernels.common import EVERY, Call, Case, Kernel

GATHERED_ELEMENTS = 2**20
"""Numbers of keys and values that are gathered at once, 4 MiB in float32."""

ROW_ELEMENTS = 2**20
"""Scores that are formed at once, of queries that see all keys."""

GATHERED_COST = 16
"""How many keys a tile reads in the time that one is gathered."""

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
    pattern, first = case.spec.pattern, max(0, case.kv_len - case.q_len)
    worth = GATHERED_COST * (pattern.degree or 0)
    if worth > case.kv_len:
        return f"reading all {case.kv_len:,} keys in their order is quicker than gathering up to {pattern.degree:,}"
    middle = first + case.q_len // 2
    stop = max(middle + 1, min(middle + TILE_ROWS, first + case.q_len))
    read = sum(r.stop - r.start for r in pattern.key_ranges(middle, stop, kv_len=case.kv_len))
    if worth > read:
        return f"{stop - middle} queries see no more than {read:,} keys, quicker read in their order than gathered"
    return None


def run(call: Call) -> tuple[Tensor, None]:
    """Compute some queries after others; see `Kernel.run`."""
    return in_blocks(call, list(_blocks(call))), None


def _blocks(call: Call) -> Iterator[Block]:
    """Return blocks that hold each query of each head once."""
    spec = call.case.spec
    heads: list[int | None] = list(range(spec.num_heads)) if spec.pattern.per_head else [None]
    for head in heads:
        whole: list[int] = []
        for block in _lists(call, head, whole):
            yield block
        yield from _whole_rows(call, head, whole)


def _lists(call: Call, head: int | None, whole: list[int]) -> Iterator[Block]:
    """Return the blocks of all queries that have a list, and note in ``whole`` those that have none."""
    spec = call.case.spec
    width = spec.num_maps * spec.qk_head_dim + spec.v_head_dim
    at_once = _heads(call, head) * len(call.query) * width * max(1, spec.pattern.degree or 0)
    step = max(1, GATHERED_ELEMENTS // at_once)
    for start in range(0, call.case.q_len, step):
        yield from _fitting(call, head, start, min(start + step, call.case.q_len), whole)


def _fitting(call: Call, head: int | None, start: int, stop: int, whole: list[int]) -> Iterator[Block]:
    case = call.case
    first = case.kv_len - case.q_len
    keys = case.spec.pattern.neighbours(first + start, first + stop, kv_len=case.kv_len, head=head or 0)
    if keys is not None:
        yield Block(slice(start, stop), torch.from_numpy(keys).to(call.query.device), head)
    elif stop - start == 1:
        whole.append(start)
    else:
        middle = (start + stop) // 2
        yield from _fitting(call, head, start, middle, whole)
        yield from _fitting(call, head, middle, stop, whole)


def _whole_rows(call: Call, head: int | None, rows: list[int]) -> Iterator[Block]:
    """Return the blocks of queries that see all keys, consecutive ones together as far as their scores may be."""
    pairs = _heads(call, head) * len(call.query) * call.case.spec.num_maps * max(1, call.case.kv_len)
    most = max(1, ROW_ELEMENTS // pairs)
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or rows[stop] > rows[stop - 1] + 1 or stop - start == most:
            yield Block(slice(rows[start], rows[stop - 1] + 1), EVERY, head)
            start = stop


def _heads(call: Call, head: int | None) -> int:
    return call.case.spec.num_heads if head is None else 1


KERNEL = Kernel("gathered", "each query's own few keys, gathered", refuse, run, pass_over)
