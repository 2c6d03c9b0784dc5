"""Linear attention as running sums over keys: time and memory grow with the length, not with its square.

``output_i = φ(q_i)·S / φ(q_i)·z`` with ``S = Σ φ(k_j) v_jᵀ`` and ``z = Σ φ(k_j)``. With RoPE the features are
rotated for S alone. Causal queries go through in chunks: what came before a chunk is in the sums, and inside
it pairs are formed.

*Source*: arXiv 2006.16236, eqs. 6-12; RoPE arXiv 2104.09864, eq. 19.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
)
from polyhead.position import rotary
from polyhead.spec import Causal, Linear, Rotary
from polyhead.storage import grouped

CHUNK = 128
"""Queries that go through at once."""


def refuse(case: Case) -> str | None:
    """Return why running sums do not compute this case, or None."""
    spec = case.spec
    if not isinstance(spec.weighting, Linear):
        return f"running sums are linear weighting's alone, not {type(spec.weighting).__name__}'s"
    if isinstance(spec.position, Rotary) and spec.position.per_query:
        return "each query meets keys rotated by frequencies of its own"
    if case.weights:
        return "sums over keys have no weights"
    if case.dropout:
        return "dropout is in the plain kernel alone: sums over keys have no weights to drop"
    if case.segments:
        return "a running sum does not start again where a segment does"
    if spec.pattern == Causal() and not case.state and not (case.aligned and case.q_len <= case.kv_len):
        return "a running sum follows the keys in their order, and these positions need not"
    return None


def run(call: Call) -> tuple[Tensor, None]:
    """Compute the sums and what each query takes from them; see `Kernel.run`."""
    case, spec = call.case, call.case.spec
    key, value = (x.to(compute_dtype(case.dtype)) for x in keys_and_values(call))
    query = _features(call, call.query.to(key.dtype), call.query_positions)
    queries = tuple(grouped.heads_as(x, spec.num_kv_heads, spec.group_size) for x in query)

    def attend(key: Tensor, value: Tensor) -> Tensor:
        keys = _key_features(call, key)
        if spec.pattern != Causal():
            return _divided(*_from_sums(queries, _summed(keys, value)))
        before = case.kv_len - case.q_len  # keys that every query sees, unless they are in a state already
        sums = _added(call.state, _summed(tuple(x[:, :, :before] for x in keys), value[:, :, :before]))
        return _scan(queries, tuple(x[:, :, before:] for x in keys), value[:, :, before:], sums)

    output = confined(attend, (key, value), lambda: not_finite(key, value, spec), lambda: allowed_pairs(call))
    return output.to(case.dtype), None


def sums(call: Call) -> tuple[Tensor, Tensor]:
    """Return what the keys of a call add to the two sums of its state, in the compute dtype.

    Args:
        call: What is asked, prepared.

    Returns:
        ``Σ φ(k) vᵀ`` and ``Σ φ(k)``, see `Call.state`.
    """
    key, value = (x.to(compute_dtype(call.case.dtype)) for x in keys_and_values(call))
    return _summed(_key_features(call, key), value)


def _features(call: Call, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return φ(x) for the denominator, and as the numerator has it."""
    spec = call.case.spec
    assert isinstance(spec.weighting, Linear)
    features = stages.features(spec.weighting, x)
    if not isinstance(spec.position, Rotary):
        return features, features
    return features, rotary.rotate(features, positions, spec, start=spec.rotary_offset)


def _key_features(call: Call, key: Tensor) -> tuple[Tensor, Tensor]:
    features, turned = _features(call, key, call.key_positions)
    if call.key_mask is None:
        return features, turned
    masked = ~call.key_mask[:, None, :, None]  # φ(0) is not 0
    return features.masked_fill(masked, 0.0), turned.masked_fill(masked, 0.0)


def _summed(keys: tuple[Tensor, ...], value: Tensor) -> tuple[Tensor, Tensor]:
    features, turned = keys
    return turned.mT @ value, features.sum(dim=-2)


def _added(state: tuple[Tensor, Tensor] | None, more: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return more if state is None else (state[0] + more[0], state[1] + more[1])


def _from_sums(queries: tuple[Tensor, ...], sums: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return numerator ``[batch, kv_heads, group, q_len, v_head_dim]`` and denominator ``[..., 1]``."""
    features, turned = queries
    return turned @ sums[0][:, :, None], features @ sums[1][:, :, None, :, None]


def _scan(queries: tuple[Tensor, ...], keys: tuple[Tensor, ...], value: Tensor, sums: tuple[Tensor, Tensor]) -> Tensor:
    pieces = []
    for start in range(0, max(value.shape[2], 1), CHUNK):
        now = slice(start, start + CHUNK)
        (query, turned_query), (key, turned_key) = ([x[..., now, :] for x in each] for each in (queries, keys))
        values = value[:, :, now]
        denominators = (query @ key[:, :, None].mT).tril()
        numerators = denominators if turned_query is query else (turned_query @ turned_key[:, :, None].mT).tril()
        past_numerator, past_denominator = _from_sums((query, turned_query), sums)
        numerator = numerators @ values[:, :, None] + past_numerator
        pieces.append(_divided(numerator, denominators.sum(dim=-1, keepdim=True) + past_denominator))
        sums = _added(sums, _summed((key, turned_key), values))
    return torch.cat(pieces, dim=-2)


def _divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient ``[batch, num_heads, q_len, v_head_dim]``; zeros where the denominator is 0."""
    nothing = denominator == 0
    return (numerator / denominator.masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0).flatten(1, 2)


KERNEL = Kernel("linear", "running sums over keys, in chunks of queries", refuse, run)
