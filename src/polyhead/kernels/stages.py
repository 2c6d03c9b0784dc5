"""Attention's stages between products and output, as every kernel with a score matrix goes through them.

The order is scale, softcap, bias, mask, sink, weighting; here are its parts after the products. Scores are
``[batch, maps, kv_heads, group, q_len, kv_len]``, weights ``[batch, kv_heads, group, q_len, kv_len]``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.kernels.common import Call, confined, not_finite, rotates_in_kernel
from polyhead.position import alibi, relative, rotary
from polyhead.spec import Alibi, AttentionSpec, Differential, Linear, RelativeBias, Rotary, Softmax
from polyhead.spec.position import ShawBias
from polyhead.storage import grouped

PER_QUERY_ELEMENTS = 2**24
"""Elements of per-query keys that are formed at once, 64 MiB in float32."""


def attend(call: Call, key: Tensor, value: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Compute scores, weights and output from the whole score matrix.

    Args:
        call: What is asked; positions are those of its queries and of the keys given.
        key: ``[batch, num_kv_heads · maps, kv_len, width]``, in the compute dtype.
        value: ``[batch, num_kv_heads, kv_len, v_head_dim]``, likewise.
        allowed: Which pairs may meet, ``[batch or 1, num_heads or 1, q_len, kv_len]``.

    Returns:
        The output ``[batch, num_heads, q_len, v_head_dim]`` and the weights, before dropout.
    """
    spec = call.case.spec
    weights = _weights(call, key, by_group(allowed, spec))

    def mix(seen_key: Tensor, seen_value: Tensor) -> Tensor:
        # from finite stand-ins the weights of rows that see no bad key are what they were
        mixed = weights if seen_key is key else _weights(call, seen_key, by_group(allowed, spec))
        mixed = functional.dropout(mixed, call.dropout_p) if call.dropout_p else mixed
        values = (mixed.flatten(2, 3) @ seen_value).reshape(*mixed.shape[:4], spec.v_head_dim)
        return finish(call, mixed, values)

    return confined(mix, (key, value), lambda: not_finite(key, value, spec), lambda: allowed), weights


def weigh(call: Call, products: Tensor, query: Tensor, allowed: Tensor) -> Tensor:
    """Turn scaled q·k into weights, with softmax or differential weighting.

    Args:
        call: What is asked.
        products: q·k with the scale, which are this function's own to change.
        query: ``[batch, maps, kv_heads, group, q_len, qk_head_dim]``, scaled, which meets Shaw's relative keys.
        allowed: Which pairs may meet, broadcastable to the weights.

    Returns:
        The weights; 0 for a pair that may not meet.
    """
    scores = biased(call, products, query)
    allowed = allowed[:, None]
    blind = ~allowed.any(dim=-1, keepdim=True)
    # a blind row's scores become 0, so that neither it nor its gradient is NaN, and its weights are zeroed below
    scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(blind, 0.0)
    return mixed_maps(call, softmax(call, scores).masked_fill(~allowed, 0.0))


def mixed_maps(call: Call, maps: Tensor) -> Tensor:
    """Return the weights that softmax's, ``[batch, maps, kv_heads, group, q_len, kv_len]``, come to."""
    weighting = call.case.spec.weighting
    if not isinstance(weighting, Differential):
        return maps[:, 0]
    weights = maps[:, 0] - difference(call, weighting) * maps[:, 1]
    if weighting.form == "clipped":
        weights = weights.clamp(min=0.0)
        total = weights.sum(dim=-1, keepdim=True)
        weights = weights / total.masked_fill(total == 0, 1.0)
    return weights


def finish(call: Call, weights: Tensor | None, output: Tensor) -> Tensor:
    """Complete the weighted values: Shaw's part of them, then differential weighting's norm.

    Args:
        call: What is asked.
        weights: The weights, which Shaw's part needs.
        output: The weighted values ``[batch, kv_heads, group, q_len, v_head_dim]``.

    Returns:
        ``[batch, num_heads, q_len, v_head_dim]``.
    """
    spec = call.case.spec
    if isinstance(spec.position, ShawBias):
        assert weights is not None
        pair_entries = relative.entries(spec, call.query_positions, call.key_positions)
        output = output + relative.mixed_values(weights, call.params["relative_values"], pair_entries)
    if isinstance(spec.weighting, Differential) and spec.weighting.form != "clipped":
        norm_weight = call.params.get("sub_norm")
        output = functional.rms_norm(output, output.shape[-1:], norm_weight, spec.weighting.norm_eps)
        output = output * (1.0 - spec.weighting.initial_lambda)
    return output.flatten(1, 2)


def features(weighting: Linear, x: Tensor) -> Tensor:
    """Return φ(x), with which linear attention replaces the softmax."""
    if weighting.feature_map == "relu":
        return functional.relu(x)
    if weighting.feature_map == "softplus":
        return functional.softplus(x)
    return functional.relu(x) + x.clamp(max=0.0).exp_()  # elu(x) + 1, which would round a small sum away


def by_group(per_head: Tensor, spec: AttentionSpec) -> Tensor:
    """Lay ``[batch, num_heads or 1, ...]`` out as ``[batch, kv_heads or 1, group or 1, ...]``."""
    shape = (1, 1) if per_head.shape[1] == 1 else (spec.num_kv_heads, spec.group_size)
    return grouped.heads_as(per_head, *shape)


def biased(call: Call, scores: Tensor, query: Tensor) -> Tensor:
    """Apply softcap, then the position's bias.

    Args:
        call: What is asked.
        scores: Scaled q·k, which this function may change.
        query: As `weigh` takes it.

    Returns:
        The scores.
    """
    spec = call.case.spec
    position, positions = spec.position, (call.query_positions, call.key_positions)
    if isinstance(position, ShawBias):  # part of q·k, so before the cap
        pair_entries = relative.entries(spec, *positions)
        scores = scores + relative.key_scores(query, call.params["relative_keys"], pair_entries)
    if isinstance(spec.weighting, Softmax) and spec.weighting.softcap is not None:
        scores = spec.weighting.softcap * torch.tanh(scores / spec.weighting.softcap)
    if isinstance(position, Alibi):
        return scores.add_(by_group(alibi.bias(spec, *positions, scores.dtype), spec)[:, None])
    if isinstance(position, RelativeBias) and not isinstance(position, ShawBias):
        bias = relative.bias(call.params["bias_table"], relative.entries(spec, *positions))
        return scores.add_(by_group(bias, spec)[:, None])
    return scores


def softmax(call: Call, scores: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the softmax of each row, to which a sink is one more score.

    Args:
        call: What is asked.
        scores: ``[batch, maps, kv_heads, group, q_len, kv_len]``.
        out: Where to put it if there is no sink, perhaps the scores themselves. None: somewhere new.

    Returns:
        The same shape.
    """
    weighting = call.case.spec.weighting
    if not (isinstance(weighting, Softmax) and weighting.sink):
        return torch.softmax(scores, dim=-1, out=out)
    column = call.params["sinks"].view(scores.shape[2], scores.shape[3], 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]


def difference(call: Call, weighting: Differential) -> Tensor | float:
    """Return λ, how much of the second map is taken from the first."""
    if weighting.form == "clipped":
        return weighting.initial_lambda
    first, second = ((call.params[f"lambda_q{i}"] @ call.params[f"lambda_k{i}"]).exp() for i in (1, 2))
    return first - second + weighting.initial_lambda


def _weights(call: Call, key: Tensor, allowed: Tensor) -> Tensor:
    spec = call.case.spec
    query = grouped.by_group(call.query.to(key.dtype), spec)
    if isinstance(spec.weighting, Linear):
        return _linear(call, spec.weighting, query, key, allowed)[:, 0]
    query = query * spec.scale
    return weigh(call, _products(call, query, key), query, allowed)


def _products(call: Call, query: Tensor, key: Tensor) -> Tensor:
    """Return q·k ``[batch, maps, kv_heads, group, q_len, kv_len]``, rotating here where it could not be done before."""
    spec = call.case.spec
    if not rotates_in_kernel(spec):
        # a group's queries are rows of one product, so keys are not repeated, nor moved to lie map by map
        rows = grouped.by_key_head(query, spec).flatten(2, 3)
        products: Tensor = grouped.keys_by_map(rows @ key.mT, spec).unflatten(3, query.shape[3:5])
        return products
    key = grouped.keys_by_map(key, spec)
    assert isinstance(spec.position, Rotary)
    if not spec.position.per_query:  # linear weighting: all queries meet the same keys, which are then not repeated
        query, key = rotary.rotate_for_queries(query, key, (call.query_positions, call.key_positions), spec)
        turned: Tensor = (query.flatten(3, 4) @ key[..., 0, :, :].mT).unflatten(3, query.shape[3:5])
        return turned
    step = max(1, PER_QUERY_ELEMENTS // max(1, key.numel()))
    pieces = []
    for start in range(0, max(query.shape[-2], 1), step):
        positions = (call.query_positions[:, start : start + step], call.key_positions)
        turned, keys = rotary.rotate_for_queries(query[..., start : start + step, :], key, positions, spec)
        pieces.append((turned[..., None, :] @ keys[..., None, :, :, :].mT).squeeze(-2))
    return torch.cat(pieces, dim=-2)


def _linear(call: Call, weighting: Linear, query: Tensor, key: Tensor, allowed: Tensor) -> Tensor:
    """Return φ(q)·φ(k) over its row's sum, ``[batch, 1, ...]``; RoPE turns the numerator alone."""
    query, key = features(weighting, query), features(weighting, key)
    denominator: Tensor = (query[:, 0].flatten(2, 3) @ key.mT).unflatten(2, query.shape[3:5])[:, None]
    numerator = _products(call, query, key) if rotates_in_kernel(call.case.spec) else denominator
    allowed = allowed[:, None]
    total = denominator.masked_fill(~allowed, 0.0).sum(dim=-1, keepdim=True)
    weights = numerator / total.masked_fill(total == 0, 1.0)
    return weights.masked_fill(~allowed | (total == 0), 0.0)
