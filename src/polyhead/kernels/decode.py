"""A few queries against many stored keys in PyTorch, at little more than what reading these once costs.

The query heads that share a key/value head are rows of one product, so a key is read once for all of them, and
``keys · queriesᵀ`` reads keys in the order in which they lie. What a query cannot see at either end is not read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.kernels import decoding, stages
from polyhead.kernels.common import Call, Kernel, allowed_pairs, compute_dtype, confined, not_finite
from polyhead.storage import grouped


def run(call: Call) -> tuple[Tensor, None]:
    """Compute scores, weights and output, sequence by sequence if they are ragged; see `Kernel.run`."""
    outputs = [_attend(one) for one in decoding.sequences(call)]
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)), None


def _attend(call: Call) -> Tensor:
    case, spec = call.case, call.case.spec
    key, value = call.key, call.value
    assert value is not None
    seen = decoding.visible(call)
    near = decoding.over(call, seen.keys)
    query = grouped.by_group(call.query.to(compute_dtype(case.dtype)), spec) * spec.scale
    rows = grouped.by_key_head(query, spec).flatten(2, 3)

    def attend(key: Tensor, value: Tensor) -> Tensor:
        products = grouped.keys_by_map(decoding.scores(rows, key[:, :, seen.keys]), spec)
        weights = decoding.weigh(near, products.unflatten(3, query.shape[3:5]), query, seen)
        values: Tensor = decoding.mixed(weights.flatten(2, 3), value[:, :, seen.keys])
        return stages.finish(near, weights, values.unflatten(2, weights.shape[2:4]))

    output = confined(attend, (key, value), lambda: not_finite(key, value, spec), lambda: allowed_pairs(call))
    return output.to(case.dtype)


KERNEL = Kernel("decode", "a few queries against stored keys, each read once", decoding.refuse, run, decoding.pass_over)
