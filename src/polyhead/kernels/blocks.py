"""Blocks of queries, each computed from the keys that it is given, at the memory of one block forward and backward.

Which queries and keys make a block is for a kernel to say. What becomes of them is the same: the plain kernel's stages.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from polyhead.kernels import stages
from polyhead.kernels.common import EVERY, Call, Case, allowed_pairs, keys_and_values
from polyhead.kernels.pieces import Part, Piece, Plan, piecewise
from polyhead.spec import Alibi, AttentionSpec, Full, Grouped


class Block(NamedTuple):
    """Consecutive queries, and keys.

    Attributes:
        rows: Which queries.
        keys: Which keys, for all of the queries. Or the keys of each, ``[queries, keys]`` and -1 where there is none:
            exactly those that the pattern allows, none twice.
        head: Of which head. None: of all.
    """

    rows: slice
    keys: slice | Tensor
    head: int | None

    @property
    def each_its_own(self) -> bool:
        """Whether each query has its own keys."""
        return isinstance(self.keys, Tensor) and self.keys.dim() == 2


def in_blocks(call: Call, blocks: Sequence[Block]) -> Tensor:
    """Compute block after block.

    Args:
        call: What is asked.
        blocks: Blocks that hold each query of each head once. They are kept for the backward pass.

    Returns:
        The output ``[batch, num_heads, q_len, v_head_dim]``.
    """
    spec, batch = call.case.spec, call.query.shape[0]
    tensors = {"query": call.query, **dict(zip(("key", "value"), keys_and_values(call), strict=True))}
    tensors |= {name: x for name, x in call.params.items() if name not in ("w_uk", "w_uv")}  # these are used by now
    plan = Plan(
        num_pieces=len(blocks),
        piece=lambda number: _piece(call, tuple(tensors), blocks[number]),
        shape=(batch, spec.num_heads, call.case.q_len, spec.v_head_dim),
        dtype=call.case.dtype,
    )
    return piecewise(plan, tuple(tensors.values()))


def _piece(call: Call, names: tuple[str, ...], block: Block) -> Piece:
    spec = call.case.spec
    keys = _existing(block.keys).flatten() if isinstance(block.keys, Tensor) else block.keys
    parts: dict[str, Part] = dict.fromkeys(names, ())
    parts |= {"query": (EVERY, EVERY, block.rows), "key": (EVERY, EVERY, keys), "value": (EVERY, EVERY, keys)}
    output: Part = (EVERY, EVERY, block.rows)
    if block.head is not None:
        of_head = _parts_of_head(spec, block.rows, keys, block.head)
        parts |= {name: part for name, part in of_head.items() if name in parts}
        output = (EVERY, slice(block.head, block.head + 1), block.rows)
        spec = _of_head(spec, block.head)
    case = call.case._replace(spec=spec)
    return Piece(tuple(parts.values()), output, functools.partial(_attend, call, case, block, names))


def _attend(call: Call, case: Case, block: Block, names: tuple[str, ...], *tensors: Tensor) -> tuple[Tensor]:
    """Return the output of a block from its tensors."""
    given = dict(zip(names, tensors, strict=True))
    query, key, value = (given.pop(name) for name in ("query", "key", "value"))
    own = call._replace(case=case, query=query, params=given)
    if block.each_its_own:
        return (_each_its_own(own, block, key, value),)
    allowed = allowed_pairs(call, block.rows, block.keys, block.head)
    own = own._replace(
        query_positions=call.query_positions[:, block.rows],
        key_positions=call.key_positions[:, block.keys],
    )
    return (stages.attend(own, key, value, allowed)[0],)


def _each_its_own(call: Call, block: Block, key: Tensor, value: Tensor) -> Tensor:
    """Return the output of a block from the keys of each query, ``[batch, heads, queries · keys, width]``.

    A query and its keys are a sequence of their own here, and the block a batch of them.
    """
    assert isinstance(block.keys, Tensor)
    batch, queries, keys = len(call.query), len(block.keys), _existing(block.keys)

    def by_query(x: Tensor) -> Tensor:
        apart: Tensor = x.unflatten(2, (queries, x.shape[2] // queries))
        return apart.movedim(2, 1).flatten(0, 1)

    def positions(x: Tensor) -> Tensor:
        return x.expand(batch, *x.shape[1:]).flatten(0, 1)

    allowed = (block.keys >= 0)[None]
    if call.key_mask is not None:
        allowed = allowed & call.key_mask[:, keys]
    if call.segments is not None:
        allowed = allowed & (call.segments[:, block.rows, None] == call.segments[:, keys])
    own = call._replace(
        query=by_query(call.query),
        query_positions=positions(call.query_positions[:, block.rows, None]),
        key_positions=positions(call.key_positions[:, keys]),
    )
    output, _ = stages.attend(own, by_query(key), by_query(value), positions(allowed)[:, None, None])
    by_sequence: Tensor = output.unflatten(0, (batch, queries))
    return by_sequence.movedim(1, 2).flatten(2, 3)


def _existing(keys: Tensor) -> Tensor:
    """Return keys that can be read: the first for each that is none, which no query sees."""
    return keys.clamp(min=0)


def _of_head(spec: AttentionSpec, head: int) -> AttentionSpec:
    """Return the mechanism of one head alone, but for its pattern."""
    one: dict[str, Any] = {"num_heads": 1, "num_kv_heads": 1} if isinstance(spec.storage, Grouped) else {"num_heads": 1}
    position = spec.position
    if isinstance(position, Alibi):
        position = Alibi(slopes=(position.head_slopes(spec.num_heads)[head],))
    storage = dataclasses.replace(spec.storage, **one)
    return dataclasses.replace(spec, storage=storage, position=position, pattern=Full())


def _parts_of_head(spec: AttentionSpec, rows: slice, keys: slice | Tensor, head: int) -> dict[str, Part]:
    """Return which part of each tensor is one head's."""
    query_maps, key_maps = zip(*(spec.map_of(head, index) for index in range(spec.num_maps)), strict=True)
    one, kv_head = slice(head, head + 1), head // spec.group_size
    return {
        "query": (EVERY, _stepping(query_maps), rows),
        "key": (EVERY, _stepping(key_maps), keys),
        "value": (EVERY, slice(kv_head, kv_head + 1), keys),
        "bias_table": (EVERY, one),
        "sinks": (one,),
    }


def _stepping(maps: Sequence[int]) -> slice:
    """Return one or two places as a slice."""
    return slice(maps[0], maps[-1] + 1, max(1, maps[-1] - maps[0]))
