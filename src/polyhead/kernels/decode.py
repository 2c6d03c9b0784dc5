"""A few queries against many stored keys in PyTorch, at little more than what reading these once costs.

The query heads that share a key/value head are rows of one product, so a key is read once for all of them, and
``keys · queriesᵀ`` reads keys in the order in which they lie. What a query cannot see at either end is not read.
Where rows are many, and nothing but the product decides a score, PyTorch's flash attention takes stretches of keys.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from polyhead.kernels import decoding, flash, stages
from polyhead.kernels.common import Call, Kernel, allowed_pairs, compute_dtype, confined, not_finite
from polyhead.spec import NoPosition, Rotary, Softmax
from polyhead.storage import grouped


def run(call: Call) -> tuple[Tensor, None]:
    """Compute scores, weights and output, sequence by sequence if they are ragged; see `Kernel.run`."""
    outputs = [_attend(one) for one in decoding.sequences(call)]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), None


STRETCH = 2048
"""Keys that flash attention takes at once."""

FEWEST_ROWS = 16
"""Rows from which it takes less time than products that write their scores."""


def _attend(call: Call) -> Tensor:
    case, spec = call.case, call.case.spec
    key, value = call.key, call.value
    assert value is not None
    seen = decoding.visible(call)
    near = decoding.over(call, seen.keys)
    query = grouped.by_group(call.query.to(compute_dtype(case.dtype)), spec) * spec.scale
    rows = grouped.by_key_head(query, spec).flatten(2, 3)

    if _in_stretches(call, rows.shape[2], seen):
        attend: Callable[[Tensor, Tensor], Tensor] = functools.partial(_stretched, call, rows, seen)
    else:
        attend = _scored(near, query, rows, seen)
    output = confined(attend, (key, value), lambda: not_finite(key, value, spec), lambda: allowed_pairs(call))
    return output.to(case.dtype)


def _scored(near: Call, query: Tensor, rows: Tensor, seen: decoding.Visible) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what forms all scores, of a call with the positions of what is seen."""
    spec = near.case.spec

    def attend(key: Tensor, value: Tensor) -> Tensor:
        products = grouped.keys_by_map(decoding.scores(rows, key[:, :, seen.keys]), spec)
        weights = decoding.weigh(near, products.unflatten(3, query.shape[3:5]), query, seen)
        values: Tensor = decoding.mixed(weights.flatten(2, 3), value[:, :, seen.keys])
        return stages.finish(near, weights, values.unflatten(2, weights.shape[2:4]))

    return attend


def _in_stretches(call: Call, rows: int, seen: decoding.Visible) -> bool:
    """Whether flash attention over stretches of keys computes a call, and takes less time."""
    case, spec = call.case, call.case.spec
    if rows < FEWEST_ROWS or not flash.joins_exactly(case) or flash.missing() is not None:
        return False
    if not isinstance(spec.position, NoPosition | Rotary) or not isinstance(spec.weighting, Softmax):
        return False
    if spec.weighting.softcap is not None or spec.weighting.sink or spec.qk_head_dim != spec.v_head_dim:
        return False
    in_part: int = sum(keys.stop - keys.start for keys in seen.partly)
    in_whole: int = seen.keys.stop - seen.keys.start - in_part
    return in_whole >= 2 * STRETCH > 2 * in_part


def _stretched(call: Call, rows: Tensor, seen: decoding.Visible, key: Tensor, value: Tensor) -> Tensor:
    """Compute keys that all queries see in stretches, and the few others with a mask; scale is in the rows."""
    spec = call.case.spec
    output, sums = torch.zeros_like(rows), rows.new_full(rows.shape[:3], -torch.inf)
    last, each = seen.keys.start, (spec.group_size, call.case.q_len)
    for part in (*seen.partly, slice(seen.keys.stop, seen.keys.stop)):
        if part.start > last:
            whole = slice(last, part.start)
            flash.join(output, sums, *flash.in_stretches(rows, key[:, :, whole], value[:, :, whole], STRETCH, 1.0))
        if part.stop > part.start:
            hidden = ~stages.by_group(allowed_pairs(call, keys=part), spec)
            scores = (rows @ key[:, :, part].mT).unflatten(2, each).masked_fill(hidden, -torch.inf).flatten(2, 3)
            total = scores.logsumexp(-1, keepdim=True)
            weights = (scores - total).exp().masked_fill(total == -torch.inf, 0.0)
            flash.join(output, sums, weights @ value[:, :, part], total.squeeze(-1))
        last = part.stop
    by_head: Tensor = output.unflatten(2, each).flatten(1, 2)
    return by_head


KERNEL = Kernel("decode", "a few queries against stored keys, each read once", decoding.refuse, run, decoding.pass_over)
