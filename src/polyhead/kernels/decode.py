"""A few queries against many stored keys in PyTorch, at little more than what reading these once costs.

The query heads that share a key/value head are rows of one product, so a key is read once for all of them, and
``keys · queriesᵀ`` reads keys in the order in which they lie. What a query cannot see at either end is not read.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from polyhead.kernels import decoding, stages
from polyhead.kernels.common import Call, Case, Kernel, allowed_pairs, compute_dtype, confined, not_finite
from polyhead.storage import grouped

FEWEST_KEYS = 2**10
"""Keys, of all heads together, below which one call of PyTorch's takes less time than the steps do here."""


def pass_over(case: Case) -> str | None:
    """Return why another kernel is quicker, or None."""
    if case.kv_len * case.spec.num_kv_heads < FEWEST_KEYS:
        return f"below {FEWEST_KEYS:,} keys of all heads together, its steps take longer than reading them"
    return None


def run(call: Call) -> tuple[Tensor, None]:
    """Compute scores, weights and output, sequence by sequence if they are ragged; see `Kernel.run`."""
    outputs = [_attend(one) for one in decoding.sequences(call)]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), None


def _attend(call: Call) -> Tensor:
    case, spec = call.case, call.case.spec
    key, value = call.key, call.value
    assert value is not None
    seen, partly, blind = decoding.visible(call)
    query = grouped.by_group(call.query.to(compute_dtype(case.dtype)), spec) * spec.scale
    rows = grouped.by_key_head(query, spec).flatten(2, 3)
    near = dataclasses.replace(call, key_positions=call.key_positions[:, seen])
    masks = [
        (slice(keys.start - seen.start, keys.stop - seen.start), ~stages.by_group(allowed_pairs(call, keys=keys), spec))
        for keys in partly
    ]

    def attend(key: Tensor, value: Tensor) -> Tensor:
        products = decoding.scores(rows, key[:, :, seen])
        by_map: Tensor = grouped.keys_by_map(products, spec).unflatten(3, query.shape[3:5])
        scores = stages.biased(near, by_map, query)
        for keys, hidden in masks:
            scores[..., keys].masked_fill_(hidden[:, None], -torch.inf)
        nothing = (scores == -torch.inf).all(dim=-1, keepdim=True) if blind else None
        weights = stages.softmax(near, scores, out=scores)
        if nothing is not None:
            weights = weights.masked_fill(nothing, 0.0)
        weights = stages.mixed_maps(near, weights)
        values = decoding.mixed(weights.flatten(2, 3), value[:, :, seen])
        return stages.finish(near, weights, values.unflatten(2, weights.shape[2:4]))

    output = confined(attend, (key, value), lambda: not_finite(key, value, spec), lambda: allowed_pairs(call))
    return output.to(case.dtype)


KERNEL = Kernel("decode", "a few queries against stored keys, each read once", decoding.refuse, run, pass_over)
