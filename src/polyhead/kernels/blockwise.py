"""The plain kernel's stages, one block of queries at a time, over the keys that the pattern lets the block see.

Memory is that of a block's scores instead of all scores', forward and backward, and time goes by the pairs that the
pattern allows. It takes every legal spec: what the faster kernels cannot do, such as softcap, Shaw's vectors, clipped
differential weighting, or keys that each query turns by frequencies of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from polyhead.kernels.blocks import Block, in_blocks
from polyhead.kernels.common import Call, Case, Kernel
from polyhead.spec import AttentionSpec, Rotary
from polyhead.spec.ranges import BlockState, KeyRange, clip, merge

BLOCK_ELEMENTS = 2**20
"""Scores of a block at most, 4 MiB in float32; or numbers of the keys, where each query turns them for itself."""

BLOCK_COST = 2**16
"""What a block costs besides, in scores."""

MOST_VAIN = 1.25
"""How many times the keys that are seen a block reads at most, to read them where they lie."""


def refuse(case: Case) -> str | None:
    """Return why blocks of queries do not compute this case, or None."""
    if case.dropout:
        return "dropout is in the plain kernel alone: the backward pass would have to draw it again"
    if case.weights:
        return "the weights of all queries are the matrix that blocks avoid"
    if case.compiled:
        return "its blocks go by the lengths, which a compiled graph leaves open"
    if case.state:
        return "a cache of sums has no keys left to score"
    return None


def pass_over(case: Case) -> str | None:
    """Return why one block is no better than the plain kernel, or None."""
    if case.q_len * case.kv_len * case.spec.num_heads * _elements(case.spec) <= BLOCK_ELEMENTS:
        return "the scores of all queries fit into one block"
    return None


def run(call: Call) -> tuple[Tensor, None]:
    """Compute block after block; see `Kernel.run`."""
    return in_blocks(call, list(_blocks(call))), None


def _blocks(call: Call) -> Iterator[Block]:
    """Return blocks that hold each query of each head once."""
    rows = _rows(call)
    for start in range(0, call.case.q_len, rows):
        yield from _fitting(call, start, min(start + rows, call.case.q_len))


def _rows(call: Call) -> int:
    """Return with how many queries in a block each costs least: few see few keys in vain, many share a block's cost."""
    q_len, middle = call.case.q_len, call.case.q_len // 2

    def cost(rows: int) -> float:
        keys = _length(_seen(call, middle, min(middle + rows, q_len)))
        return (BLOCK_COST + rows * keys * call.case.spec.num_heads * _per_pair(call)) / rows

    candidates = [16, 32, 64, 128, 256, 512, 1024]
    return min(candidates, key=cost)


def _fitting(call: Call, start: int, stop: int) -> Iterator[Block]:
    """Return one block, or one for each head if that is less; of fewer queries each, if there are too many scores."""
    heads, rows = call.case.spec.num_heads, slice(start, stop)
    apart = [_seen(call, start, stop, head) for head in range(heads if call.case.spec.pattern.per_head else 1)]
    together = merge(apart, max)
    size = (stop - start) * _per_pair(call)
    extra = heads * size * _length(together) - size * sum(
        map(_length, apart)
    )  # scores of keys that a head does not see
    if len(apart) > 1 and extra > (heads - 1) * BLOCK_COST:
        largest = size * max(map(_length, apart))
        blocks = [Block(rows, _index(seen, call.key.device), head) for head, seen in enumerate(apart)]
    else:
        largest = heads * size * _length(together)
        blocks = [Block(rows, _index(together, call.key.device), None)]
    if largest <= BLOCK_ELEMENTS or stop - start == 1:
        yield from blocks
        return
    middle = (start + stop) // 2
    yield from _fitting(call, start, middle)
    yield from _fitting(call, middle, stop)


def _per_pair(call: Call) -> int:
    return call.query.shape[0] * _elements(call.case.spec)


def _elements(spec: AttentionSpec) -> int:
    """Return how many numbers are formed for each pair, of one head."""
    per_query = isinstance(spec.position, Rotary) and spec.position.per_query
    return spec.num_maps * (spec.qk_head_dim if per_query else 1)


def _seen(call: Call, start: int, stop: int, head: int = 0) -> list[KeyRange]:
    """Return which keys some queries see, as far as it is known without their positions."""
    case = call.case
    first = case.kv_len - case.q_len
    if not case.aligned or first < 0:
        return clip([KeyRange(0, case.kv_len, BlockState.PARTIAL)], case.kv_len)
    return case.spec.pattern.key_ranges(first + start, first + stop, kv_len=case.kv_len, head=head)


def _length(ranges: Sequence[KeyRange]) -> int:
    return sum(r.stop - r.start for r in ranges)


def _index(ranges: Sequence[KeyRange], device: torch.device) -> slice | Tensor:
    """Return the keys of some ranges; of all from the first to the last, if few lie between."""
    if not ranges:
        return slice(0, 0)
    whole = slice(ranges[0].start, ranges[-1].stop)
    if whole.stop - whole.start <= MOST_VAIN * _length(ranges):
        return whole
    return torch.cat([torch.arange(r.start, r.stop, device=device) for r in ranges])


KERNEL = Kernel("blockwise", "the score matrix in blocks of queries and the keys they can see", refuse, run, pass_over)
