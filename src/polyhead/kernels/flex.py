"""PyTorch's FlexAttention on a GPU: patterns as blocks of pairs, biases and softcap as they are met, no matrix.

A sink takes its share afterwards, from the log-sum-exp of each row; differential weighting is two calls. What
FlexAttention is told of a pattern is in `polyhead.kernels.flex_mask`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.kernels import flex_mask, flex_operator, stages
from polyhead.kernels.common import (
    Call,
    Case,
    Kernel,
    allowed_pairs,
    beyond_flash,
    compute_dtype,
    confined,
    keys_and_values,
    not_finite,
)
from polyhead.position import relative
from polyhead.spec import Alibi, AttentionSpec, Differential, Linear, RelativeBias, Softmax
from polyhead.storage import grouped

FEWEST_PAIRS = 2**16
"""Pairs below which listing blocks takes longer than a matrix of scores."""

NARROWEST = 16
"""The least width of a query or a value that a GPU's matrix units take."""

Operator = Callable[..., Any]
"""``torch.nn.attention.flex_attention.flex_attention``, compiled or not."""

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""What becomes of a score: from it, and the numbers of batch entry, head, query and key."""


def refuse(case: Case) -> str | None:
    """Return why FlexAttention does not compute this case, or None."""
    if case.device != "cuda":
        return f"FlexAttention is for GPUs here, not {case.device}: on the CPU tiles do better"
    return _unknown_to_it(case.spec) or _does_not_give(case) or flex_operator.missing()


def _unknown_to_it(spec: AttentionSpec) -> str | None:
    if isinstance(spec.weighting, Linear):
        return "FlexAttention's weights are a softmax"
    return beyond_flash(spec)


def _does_not_give(case: Case) -> str | None:
    if case.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"FlexAttention computes in float32, bfloat16 or float16, not {str(case.dtype).removeprefix('torch.')}"
    if case.compiled:
        return "its blocks go by the lengths, which a compiled graph leaves open"
    if case.dropout:
        return "dropout is in the plain kernel alone"
    if case.weights:
        return "FlexAttention does not return weights"
    if 0 in (case.q_len, case.kv_len):
        return "there is no query or no key"
    return None


def pass_over(case: Case) -> str | None:
    """Return why another kernel is quicker, or None."""
    if case.q_len * case.kv_len < FEWEST_PAIRS:
        return f"below {FEWEST_PAIRS} pairs, listing blocks costs more than it saves"
    return None


def run(call: Call) -> tuple[Tensor, None]:
    """Compute with the compiled operator; see `Kernel.run`."""
    return attend(call, flex_operator.compiled()), None


def attend(call: Call, operator: Operator) -> Tensor:
    """Compute attention with FlexAttention.

    Args:
        call: What is asked; on the CPU too, if the operator is not compiled.
        operator: FlexAttention.

    Returns:
        ``[batch, num_heads, q_len, v_head_dim]``, in the query's dtype.
    """
    key, value = keys_and_values(call)
    told = {"score_mod": score_mod(call), "block_mask": flex_mask.block_mask(call)}
    mapped = functools.partial(_mix, call, functools.partial(operator, **told))
    bad = functools.partial(not_finite, key, value, call.case.spec)
    return confined(mapped, (key, value), bad, lambda: allowed_pairs(call))


def score_mod(call: Call) -> ScoreMod | None:
    """Return softcap and the position's bias, or None where there is neither."""
    weighting, bias = call.case.spec.weighting, _bias(call)
    softcap = weighting.softcap if isinstance(weighting, Softmax) else None
    if softcap is None:
        return None if bias is None else lambda score, *pair: score + bias(*pair)

    bound = torch.tensor(softcap, dtype=compute_dtype(call.case.dtype), device=call.query.device)

    def modified(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = bound * torch.tanh(score / bound)
        return score if bias is None else score + bias(batch, head, query, key)

    return modified


def _bias(call: Call) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None:
    """Return the bias of a pair, from the numbers of batch entry, head, query and key; None where there is none."""
    spec, position = call.case.spec, call.case.spec.position
    query_at, key_at = flex_mask.places(call)
    if isinstance(position, Alibi):
        dtype = compute_dtype(call.case.dtype)
        slopes = torch.tensor(position.head_slopes(spec.num_heads), dtype=dtype, device=call.query.device)

        def by_slope(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return -slopes[head] * (query_at(batch, query) - key_at(batch, key)).abs().to(dtype)

        return by_slope
    if isinstance(position, RelativeBias):
        limits = _distances(call, position)
        of_distance = _distance_bias(call, *limits)
        lowest, highest = torch.tensor(limits, device=call.query.device)  # as numbers they would be compiled anew

        def by_distance(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = (key_at(batch, key) - query_at(batch, query)).clamp(lowest, highest)
            return of_distance[head, distance - lowest]

        return by_distance
    return None


def _distances(call: Call, position: RelativeBias) -> tuple[int, int]:
    """Return the distances ``key − query`` between which the bias is written out.

    Past the table's end they share an entry. Yet each has its own place as far as it is known which there are: the
    gradient adds up in these places, and many pairs that add to one would wait for each other.
    """
    if call.case.aligned:
        return 1 - call.case.kv_len, call.case.q_len - 1
    return -position.max_distance, position.max_distance


def _distance_bias(call: Call, lowest: int, highest: int) -> Tensor:
    """Return the bias of each distance, ``[num_heads, distances]``."""
    distances = torch.arange(lowest, highest + 1, device=call.query.device)[None]
    pair_entries = relative.entries(call.case.spec, distances.new_zeros(1, 1), distances)
    return relative.bias(call.params["bias_table"], pair_entries)[0, :, 0].contiguous()


def _mix(call: Call, operator: Operator, key: Tensor, value: Tensor) -> Tensor:
    """Return the output, from all of an operator's maps."""
    spec, dtype = call.case.spec, compute_dtype(call.case.dtype)
    queries = grouped.by_group(call.query, spec).flatten(2, 3)
    keys = grouped.keys_by_map(key, spec)
    maps = [_map(call, operator, queries[:, m], keys[:, m], value) for m in range(spec.num_maps)]
    if not isinstance(spec.weighting, Differential):
        return maps[0]
    mixed = maps[0].to(dtype) - stages.difference(call, spec.weighting) * maps[1].to(dtype)
    return stages.finish(call, None, stages.by_group(mixed, spec)).to(call.case.dtype)


def _map(call: Call, operator: Operator, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return what one map makes of the values, ``[batch, num_heads, q_len, v_head_dim]``."""
    from torch.nn.attention.flex_attention import AuxRequest

    spec = call.case.spec
    attention = functools.partial(operator, *map(_widened, (query, key, value)), scale=spec.scale)
    attention = functools.partial(attention, enable_gqa=spec.group_size > 1)
    if not (isinstance(spec.weighting, Softmax) and spec.weighting.sink):
        output: Tensor = attention()
        return output[..., : spec.v_head_dim]
    output, aux = attention(return_aux=AuxRequest(lse=True))
    # exp(lse) / (exp(lse) + exp(sink)): the share of a row's weight that the sink leaves to its keys
    share = torch.sigmoid(aux.lse - call.params["sinks"][:, None])
    return (output[..., : spec.v_head_dim] * share[..., None]).to(call.case.dtype)


def _widened(x: Tensor) -> Tensor:
    """Fill narrow rows up with zeros, which add nothing to a product."""
    return x if x.shape[-1] >= NARROWEST else functional.pad(x, (0, NARROWEST - x.shape[-1]))


KERNEL = Kernel("flex", "PyTorch's FlexAttention over blocks of pairs that meet", refuse, run, pass_over)
