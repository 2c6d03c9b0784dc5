"""The whole score matrix, step by step: every legal spec, at a memory of q_len × kv_len for each head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.kernels import stages
from polyhead.kernels.common import (
    Call,
    Case,
    Kernel,
    allowed_pairs,
    compute_dtype,
    confined,
    keys_and_values,
    not_finite,
    rotates_in_kernel,
)
from polyhead.position import rotary
from polyhead.spec import Linear
from polyhead.storage import grouped

PER_QUERY_ELEMENTS = 2**24
"""Elements of per-query keys that are formed at once, 64 MiB in float32."""


def refuse(case: Case) -> str | None:
    """Return why there is no score matrix, or None: this kernel takes every other legal case."""
    return "a cache of sums has no keys left to score" if case.state else None


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """Compute scores, weights and output one after another; see `Kernel.run`."""
    case, spec = call.case, call.case.spec
    wide = compute_dtype(case.dtype)
    key, value = (x.to(wide) for x in keys_and_values(call))
    allowed = allowed_pairs(call)
    weights = _weights(call, key, stages.by_group(allowed, spec))

    def attend(seen_key: Tensor, seen_value: Tensor) -> Tensor:
        # from finite stand-ins the weights of rows that see no bad key are what they were
        mixed = weights if seen_key is key else _weights(call, seen_key, stages.by_group(allowed, spec))
        mixed = functional.dropout(mixed, call.dropout_p) if call.dropout_p else mixed
        values = (mixed.flatten(2, 3) @ seen_value).reshape(*mixed.shape[:4], spec.v_head_dim)
        return stages.finish(call, mixed, values)

    output = confined(attend, (key, value), lambda: not_finite(key, value, spec), lambda: allowed)
    return output.to(case.dtype), weights.flatten(1, 2) if case.weights else None


def _weights(call: Call, key: Tensor, allowed: Tensor) -> Tensor:
    spec = call.case.spec
    query = grouped.by_group(call.query.to(key.dtype), spec)
    if isinstance(spec.weighting, Linear):
        return _linear(call, spec.weighting, query, key, allowed)[:, 0]
    return stages.weigh(call, _products(call, query, key), query, allowed)


def _products(call: Call, query: Tensor, key: Tensor) -> Tensor:
    """Return q·k ``[batch, maps, kv_heads, group, q_len, kv_len]``, rotating here where it could not be done before."""
    spec = call.case.spec
    if not rotates_in_kernel(spec):
        # a group's queries are rows of one product, so keys are not repeated, nor moved to lie map by map
        rows = grouped.by_key_head(query, spec).flatten(2, 3)
        products: Tensor = grouped.keys_by_map(rows @ key.mT, spec).unflatten(3, query.shape[3:5])
        return products
    key = grouped.keys_by_map(key, spec)
    step = max(1, PER_QUERY_ELEMENTS // max(1, key.numel()))
    pieces = []
    for start in range(0, max(query.shape[-2], 1), step):
        positions = (call.query_positions[:, start : start + step], call.key_positions)
        turned, keys = rotary.rotate_for_queries(query[..., start : start + step, :], key, positions, spec)
        pieces.append((turned[..., None, :] @ keys[..., None, :, :, :].mT).squeeze(-2))
    return torch.cat(pieces, dim=-2)


def _linear(call: Call, weighting: Linear, query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """Return φ(q)·φ(k) over its row's sum, ``[batch, 1, ...]``; RoPE turns the numerator alone."""
    query, key = stages.features(weighting, query), stages.features(weighting, key)
    denominator: Tensor = (query[:, 0].flatten(2, 3) @ key.mT).unflatten(2, query.shape[3:5])[:, None]
    numerator = _products(call, query, key) if rotates_in_kernel(call.case.spec) else denominator
    allowed = allowed[:, None]
    total = denominator.masked_fill(~allowed, 0.0).sum(dim=-1, keepdim=True)
    weights = numerator / total.masked_fill(total == 0, 1.0)
    return weights.masked_fill(~allowed | (total == 0), 0.0)


KERNEL = Kernel("plain", "the whole score matrix, step by step", refuse, run)
