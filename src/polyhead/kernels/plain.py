"""The whole score matrix, step by step: every legal spec, at a memory of q_len × kv_len for each head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.kernels.common import (
    Call,
    Case,
    Kernel,
    allowed_pairs,
    compute_dtype,
    confined,
    keys_and_values,
    rotates_in_kernel,
)
from polyhead.position import alibi, relative, rotary
from polyhead.spec import Alibi, AttentionSpec, Differential, Linear, RelativeBias, Softmax
from polyhead.spec.position import ShawBias
from polyhead.storage import grouped

PER_QUERY_ELEMENTS = 2**24
"""Elements of per-query keys that are formed at once, 64 MiB in float32."""


def refuse(case: Case) -> str | None:
    """Return None: this kernel takes every legal case."""
    return None


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """Compute scores, weights and output one after another; see `Kernel.run`."""
    case, spec = call.case, call.case.spec
    wide = compute_dtype(case.dtype)
    key, value = (x.to(wide) for x in keys_and_values(call))
    allowed = allowed_pairs(call)
    weights = _weights(call, key, _by_group(allowed, spec))

    def attend(key: Tensor, value: Tensor) -> Tensor:
        # from finite stand-ins the weights of rows that see no bad key are what they were
        mixed = weights if key is original else _weights(call, key, _by_group(allowed, spec))
        return _output(call, functional.dropout(mixed, call.dropout_p) if call.dropout_p else mixed, value)

    original = key
    output = confined(attend, key, value, spec, lambda: allowed)
    return output.to(case.dtype), weights.flatten(1, 2) if case.weights else None


def _weights(call: Call, key: Tensor, allowed: Tensor) -> Tensor:
    """Return the weights ``[batch, kv_heads, group, q_len, kv_len]``; 0 for a pair that may not meet."""
    spec = call.case.spec
    query = grouped.by_group(call.query.to(key.dtype), spec)
    key = grouped.keys_by_map(key, spec)
    if isinstance(spec.weighting, Linear):
        return _linear(call, spec.weighting, query, key, allowed)[:, 0]
    scores = _biased(call, spec.scale * _products(call, query, key), query)
    sinks = call.params["sinks"] if isinstance(spec.weighting, Softmax) and spec.weighting.sink else None
    maps = _softmax(scores, allowed, sinks)
    if not isinstance(spec.weighting, Differential):
        return maps[:, 0]
    weights = maps[:, 0] - _lambda(call, spec.weighting) * maps[:, 1]
    if spec.weighting.form == "clipped":
        weights = weights.clamp(min=0.0)
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1.0)
    return weights


def _products(call: Call, query: Tensor, key: Tensor) -> Tensor:
    """Return q·k ``[batch, maps, kv_heads, group, q_len, kv_len]``, rotating here where it could not be done before."""
    if not rotates_in_kernel(call.case.spec):
        # a group's queries are rows of one product, so keys are not repeated
        return (query.flatten(3, 4) @ key.mT).reshape(*query.shape[:5], key.shape[-2])
    step = max(1, PER_QUERY_ELEMENTS // max(1, key.numel()))
    pieces = []
    for start in range(0, max(query.shape[-2], 1), step):
        positions = (call.query_positions[:, start : start + step], call.key_positions)
        turned, keys = rotary.rotate_for_queries(query[..., start : start + step, :], key, positions, call.case.spec)
        pieces.append((turned[..., None, :] @ keys[..., None, :, :, :].mT).squeeze(-2))
    return torch.cat(pieces, dim=-2)


def _biased(call: Call, scores: Tensor, query: Tensor) -> Tensor:
    """Apply softcap, then the position's bias."""
    spec = call.case.spec
    position, positions = spec.position, (call.query_positions, call.key_positions)
    if isinstance(position, ShawBias):  # part of q·k, so before the cap
        pair_entries = relative.entries(spec, *positions)
        scores = scores + spec.scale * relative.key_scores(query, call.params["relative_keys"], pair_entries)
    if isinstance(spec.weighting, Softmax) and spec.weighting.softcap is not None:
        scores = spec.weighting.softcap * torch.tanh(scores / spec.weighting.softcap)
    if isinstance(position, Alibi):
        return scores + _by_group(alibi.bias(spec, *positions, scores.dtype), spec)[:, None]
    if isinstance(position, RelativeBias) and not isinstance(position, ShawBias):
        bias = relative.bias(call.params["bias_table"], relative.entries(spec, *positions))
        return scores + _by_group(bias, spec)[:, None]
    return scores


def _softmax(scores: Tensor, allowed: Tensor, sinks: Tensor | None) -> Tensor:
    """Return softmax over allowed pairs; a row that has none gives zeros."""
    allowed = allowed[:, None]
    blind = ~allowed.any(dim=-1, keepdim=True)
    # a blind row's scores become 0, so that neither it nor its gradient is NaN, and its weights are zeroed below
    scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(blind, 0.0)
    if sinks is not None:
        column = sinks.view(scores.shape[2], scores.shape[3], 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    return weights.masked_fill(~allowed, 0.0)


def _linear(call: Call, weighting: Linear, query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """Return φ(q)·φ(k) over its row's sum, ``[batch, 1, ...]``; RoPE turns the numerator alone."""
    query, key = _feature_map(weighting, query), _feature_map(weighting, key)
    denominator = (query.flatten(3, 4) @ key.mT).reshape(*query.shape[:5], key.shape[-2])
    numerator = _products(call, query, key) if rotates_in_kernel(call.case.spec) else denominator
    allowed = allowed[:, None]
    total = denominator.masked_fill(~allowed, 0.0).sum(dim=-1, keepdim=True)
    weights = numerator / total.masked_fill(total == 0, 1.0)
    return weights.masked_fill(~allowed | (total == 0), 0.0)


def _feature_map(weighting: Linear, x: Tensor) -> Tensor:
    if weighting.feature_map == "relu":
        return functional.relu(x)
    return functional.softplus(x) if weighting.feature_map == "softplus" else functional.elu(x) + 1.0


def _lambda(call: Call, weighting: Differential) -> Tensor | float:
    if weighting.form == "clipped":
        return weighting.initial_lambda
    first, second = ((call.params[f"lambda_q{i}"] @ call.params[f"lambda_k{i}"]).exp() for i in (1, 2))
    return first - second + weighting.initial_lambda


def _output(call: Call, weights: Tensor, value: Tensor) -> Tensor:
    """Return the weighted values, normalised where the weighting says so: ``[batch, num_heads, q_len, v_head_dim]``."""
    spec = call.case.spec
    output = (weights.flatten(2, 3) @ value).reshape(*weights.shape[:4], value.shape[-1])
    if isinstance(spec.position, ShawBias):
        pair_entries = relative.entries(spec, call.query_positions, call.key_positions)
        output = output + relative.mixed_values(weights, call.params["relative_values"], pair_entries)
    if isinstance(spec.weighting, Differential) and spec.weighting.form != "clipped":
        norm_weight = call.params.get("sub_norm")
        output = functional.rms_norm(output, output.shape[-1:], norm_weight, spec.weighting.norm_eps)
        output = output * (1.0 - spec.weighting.initial_lambda)
    return output.flatten(1, 2)


def _by_group(per_head: Tensor, spec: AttentionSpec) -> Tensor:
    """Lay ``[batch, num_heads or 1, ...]`` out as ``[batch, kv_heads or 1, group or 1, ...]``."""
    shape = (1, 1) if per_head.shape[1] == 1 else (spec.num_kv_heads, spec.group_size)
    return grouped.heads_as(per_head, *shape)


KERNEL = Kernel("plain", "the whole score matrix, step by step", refuse, run)
