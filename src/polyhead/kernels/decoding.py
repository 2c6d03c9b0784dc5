"""What decoding has in common, however it is computed: a few queries, many stored keys, and no backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from polyhead.kernels import stages
from polyhead.kernels.common import Call, Case, allowed_pairs, rotates_in_kernel
from polyhead.spec import AttentionSpec, Full, Latent, Linear
from polyhead.spec.ranges import BlockState

MOST_QUERIES = 16
"""Queries that are a few: a cache is read once for all of them, and their scores are all kept."""

TURNED_ROWS = 64
"""Rows of queries up to which ``keys · queriesᵀ``, turned round, is quicker than ``queries · keysᵀ``."""

WIDENED_ELEMENTS = 2**20
"""Stored numbers in half precision that are made wide at once, 4 MiB in float32."""

FEWEST_KEYS = 2**10
"""Keys, of all heads together, below which one call of PyTorch's takes less time than the steps do here."""


class Visible(NamedTuple):
    """What the queries of a call see of its keys.

    Attributes:
        keys: A range with all keys that some of them see.
        partly: The parts of it that not all of them see whole.
        blind: Whether a query may see no key.
    """

    keys: slice
    partly: list[slice]
    blind: bool


def refuse(case: Case) -> str | None:
    """Return why no way of decoding computes this case, or None."""
    if case.device != "cpu":
        return f"it goes by how a processor reads memory, which is not what a {case.device} device does"
    if case.needs_grad:
        return "nothing is kept for a backward pass"
    if case.compiled:
        return "what it reads goes by the lengths, which a compiled graph leaves open"
    if case.dropout:
        return "dropout is in the plain kernel alone"
    if case.weights:
        return "the weights are not kept"
    if case.q_len > MOST_QUERIES:
        return f"it is for a few queries, at most {MOST_QUERIES}"
    if 0 in (case.q_len, case.kv_len):
        return "there is no query or no key"
    return _refuse_spec(case.spec)


def _refuse_spec(spec: AttentionSpec) -> str | None:
    if isinstance(spec.weighting, Linear):
        return "linear weighting decodes from sums"
    if isinstance(spec.storage, Latent):
        return "keys and values would have to be expanded from the latent"
    if rotates_in_kernel(spec):
        return "each query meets keys rotated by frequencies of its own"
    return None


def pass_over(case: Case) -> str | None:
    """Return why another kernel is quicker, or None."""
    if case.kv_len * case.spec.num_kv_heads < FEWEST_KEYS:
        return f"below {FEWEST_KEYS:,} keys of all heads together, its steps take longer than reading them"
    return None


def sequences(call: Call) -> list[Call]:
    """Return a call for each sequence where each has keys of its own number, so that no padding is read; or the call.

    Args:
        call: What is asked.

    Returns:
        The calls, in order.
    """
    if call.kv_lengths is None:
        return [call]
    return [_sequence(call, row, kv_len) for row, kv_len in enumerate(call.kv_lengths)]


def _sequence(call: Call, row: int, kv_len: int) -> Call:
    one = slice(row, row + 1)
    mask = call.key_mask
    return call._replace(
        case=call.case._replace(kv_len=kv_len),
        query=call.query[one],
        key=call.key[one, :, :kv_len],
        value=None if call.value is None else call.value[one, :, :kv_len],
        query_positions=call.query_positions[one] if len(call.query_positions) > 1 else call.query_positions,
        key_positions=call.key_positions[:, :kv_len],
        key_mask=None if mask is None else mask[one, :kv_len],
        kv_lengths=(kv_len,),
    )


def visible(call: Call) -> Visible:
    """Return what queries see, from the pattern alone where keys lie in order.

    Args:
        call: What is asked; of a ragged batch one sequence, else all keys count as seen in part.

    Returns:
        See `Visible`.
    """
    case, pattern = call.case, call.case.spec.pattern
    every = slice(0, case.kv_len)
    if not case.q_len:
        return Visible(every, [], False)
    if case.key_mask or case.segments:
        return Visible(every, [every], True)
    if pattern == Full():
        return Visible(every, [], case.kv_len == 0)
    in_order = case.aligned or (case.ragged and len(call.query) == 1)
    if pattern.per_head or not in_order:
        return Visible(every, [every], True)
    first = case.kv_len - case.q_len if case.aligned else int(call.query_positions[0, 0])
    ranges = pattern.key_ranges(first, first + case.q_len, kv_len=case.kv_len)
    if not ranges:
        return Visible(slice(0, 0), [], True)
    seen = slice(ranges[0].start, ranges[-1].stop)
    partly, last = [], seen.start
    for start, stop, state in ranges:
        if start > last:
            partly.append(slice(last, start))  # seen by none
        if state is BlockState.PARTIAL:
            partly.append(slice(start, stop))
        last = stop
    return Visible(seen, partly, all(state is BlockState.PARTIAL for *_, state in ranges))


def weigh(call: Call, products: Tensor, query: Tensor, seen: Visible) -> Tensor:
    """Turn scaled q·k into weights over the keys that some query sees; nothing is kept for a backward pass.

    Args:
        call: What is asked, with the positions of the keys that are seen.
        products: ``[batch, maps, kv_heads, group, q_len, seen]``, this function's own to change.
        query: As `stages.weigh` takes it.
        seen: Which keys these are, see `visible`.

    Returns:
        ``[batch, kv_heads, group, q_len, seen]``.
    """
    first, spec = seen.keys.start, call.case.spec
    scores = stages.biased(call, products, query)
    for keys in seen.partly:
        some = slice(keys.start - first, keys.stop - first)
        hidden = ~stages.by_group(allowed_pairs(call, keys=some), spec)[:, None]
        scores[..., some] = scores[..., some].masked_fill(hidden, -torch.inf)
    nothing = (scores == -torch.inf).all(dim=-1, keepdim=True) if seen.blind else None
    maps = stages.softmax(call, scores, out=scores)
    return stages.mixed_maps(call, maps if nothing is None else maps.masked_fill(nothing, 0.0))


def over(call: Call, keys: slice) -> Call:
    """Return a call with the positions, and the mask, of a range of its keys; its tensors stay as they are."""
    mask = call.key_mask
    return call._replace(key_positions=call.key_positions[:, keys], key_mask=None if mask is None else mask[:, keys])


def scores(rows: Tensor, keys: Tensor) -> Tensor:
    """Return ``rows · keysᵀ``, reading stored keys once and widening a few at a time.

    Args:
        rows: ``[batch, heads, rows, width]``.
        keys: ``[batch, heads, kv_len, width]``, of the same dtype or a narrower one.

    Returns:
        ``[batch, heads, rows, kv_len]``, in the rows' dtype and contiguous.
    """
    if keys.dtype == rows.dtype:
        return _turned(rows, keys).contiguous()
    products = rows.new_empty(*rows.shape[:3], keys.shape[2])
    for some, wide in _widened(keys, rows.dtype):
        products[..., some] = _turned(rows, wide)
    return products


def _turned(rows: Tensor, keys: Tensor) -> Tensor:
    return rows @ keys.mT if rows.shape[2] > TURNED_ROWS else (keys @ rows.mT).mT


def mixed(weights: Tensor, values: Tensor) -> Tensor:
    """Return ``weights · values``, reading stored values once and widening a few at a time.

    Args:
        weights: ``[batch, heads, rows, kv_len]``.
        values: ``[batch, heads, kv_len, width]``, of the same dtype or a narrower one.

    Returns:
        ``[batch, heads, rows, width]``, in the weights' dtype.
    """
    if values.dtype == weights.dtype:
        return weights @ values
    total = weights.new_zeros(*weights.shape[:3], values.shape[3])
    for some, wide in _widened(values, weights.dtype):
        total += weights[..., some] @ wide
    return total


def _widened(stored: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield some of what is stored after the other, in memory that is used again each time."""
    batch, heads, kv_len, width = stored.shape
    step = min(kv_len, max(1, WIDENED_ELEMENTS // max(1, batch * heads * width)))
    room = stored.new_empty(batch, heads, step, width, dtype=dtype)
    for start in range(0, kv_len, step):
        some = slice(start, min(start + step, kv_len))
        yield some, room[:, :, : some.stop - start].copy_(stored[:, :, some])
