"""Linear attention as running sums over keys: time and memory grow with the length, not with its square.

``output_i = φ(q_i)·S / φ(q_i)·z`` with ``S = Σ φ(k_j) v_jᵀ`` and ``z = Σ φ(k_j)``. With RoPE the features are
rotated for S alone. Causal queries go through in chunks: what came before a chunk is in the sums, and inside
it pairs are formed. Several chunks make a piece, whose products are batched; nothing as long as the sequence is
ever formed but the output, and in the backward pass the gradients.

*Source*: arXiv 2006.16236, eqs. 6-12; RoPE arXiv 2104.09864, eq. 19.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from polyhead.kernels import stages
from polyhead.kernels.common import (
    EVERY,
    Call,
    Case,
    Kernel,
    compute_dtype,
    kept_apart,
    keys_and_values,
    not_finite,
)
from polyhead.kernels.pieces import Piece, Plan, piecewise
from polyhead.position import rotary
from polyhead.spec import Causal, Linear, Rotary
from polyhead.storage import grouped

CHUNK = 64
"""Queries that meet one another pair by pair: fewer make more sums, more make more pairs."""

FEATURES_AT_ONCE = 2**18
"""Elements of the features of a piece, 1 MiB in float32: what it computes then stays in the processor's caches."""

NOTHING = slice(0, 0)


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
    key, value = keys_and_values(call)
    query = grouped.heads_as(call.query, spec.num_kv_heads, spec.group_size)
    stretches = list(_stretches(call))
    plan = Plan(
        num_pieces=len(stretches),
        piece=lambda number: _piece(call, *stretches[number]),
        shape=(*query.shape[:4], spec.v_head_dim),
        dtype=case.dtype,
    )

    def attend(key: Tensor, value: Tensor) -> Tensor:
        return piecewise(plan, (query, key, value), _state(call)).flatten(1, 2)

    return kept_apart(attend, (key, value), lambda: _spoiled(call, not_finite(key, value, spec))), None


def sums(call: Call) -> tuple[Tensor, Tensor]:
    """Return what the keys of a call add to the two sums of its state, in the compute dtype.

    Args:
        call: What is asked, prepared.

    Returns:
        ``Σ φ(k) vᵀ`` and ``Σ φ(k)``, see `Call.state`.
    """
    spec = call.case.spec
    key, value = keys_and_values(call)
    total: Sequence[Tensor] = _zeros(call)
    query = grouped.heads_as(call.query[:, :, NOTHING].to(total[0].dtype), spec.num_kv_heads, spec.group_size)
    for keys in _cuts(call, 0, call.case.kv_len):
        parts = (x[:, :, keys].to(total[0].dtype) for x in (key, value))
        _, *total = _step(call, NOTHING, keys, query, *parts, *total)
    return total[0], total[1]


def _stretches(call: Call) -> Iterator[tuple[slice, slice]]:
    """Return which queries and keys come next; keys that all queries see come first, and go into the sums alone."""
    q_len, kv_len = call.case.q_len, call.case.kv_len
    causal = call.case.spec.pattern == Causal()
    before = kv_len - q_len if causal else kv_len
    for keys in _cuts(call, 0, before):
        yield NOTHING, keys
    for rows in _cuts(call, 0, q_len):
        yield rows, slice(rows.start + before, rows.stop + before) if causal else NOTHING


def _cuts(call: Call, start: int, stop: int) -> Iterator[slice]:
    """Cut a stretch of tokens where pieces end: at whole chunks, and what is left of one stands alone."""
    tokens = CHUNK * max(1, FEATURES_AT_ONCE // max(1, CHUNK * call.query[:, :, :1].numel()))
    whole = start + (stop - start) // CHUNK * CHUNK
    for first, last in itertools.pairwise([*range(start, whole, tokens), whole, stop]):
        if first < last:
            yield slice(first, last)


def _state(call: Call) -> tuple[Tensor, Tensor]:
    return _zeros(call) if call.state is None else call.state


def _zeros(call: Call) -> tuple[Tensor, Tensor]:
    spec, dtype = call.case.spec, compute_dtype(call.case.dtype)
    shape = (call.query.shape[0], spec.num_kv_heads, spec.qk_head_dim)
    return call.query.new_zeros(*shape, spec.v_head_dim, dtype=dtype), call.query.new_zeros(shape, dtype=dtype)


def _piece(call: Call, rows: slice, keys: slice) -> Piece:
    by_query, by_key = (EVERY, EVERY, EVERY, rows), (EVERY, EVERY, keys)
    return Piece((by_query, by_key, by_key), by_query, functools.partial(_step, call, rows, keys))


def _step(
    call: Call, rows: slice, keys: slice, query: Tensor, key: Tensor, value: Tensor, *sums: Tensor
) -> tuple[Tensor, ...]:
    """Return what some queries take from the sums and, if these go along, from some keys; and the sums with these."""
    waves = _waves(call, call.key_positions[:, keys])
    seen = _features(call, key, waves, None if call.key_mask is None else ~call.key_mask[:, None, keys, None])
    if NOTHING not in (rows, keys):  # each query stands where its own key does
        return _scan(_features(call, query, waves), seen, value, sums)
    queries = _features(call, query, _waves(call, call.query_positions[:, rows]))
    output = _divided(*_from_sums(queries, tuple(x[:, :, None] for x in sums)))
    return output, *(sums if keys == NOTHING else _added(sums, _summed(seen, value)))


def _scan(
    queries: Sequence[Tensor], keys: Sequence[Tensor], value: Tensor, sums: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the output of queries that see the keys up to their own, chunk by chunk, and the sums with all of them."""
    chunk = min(CHUNK, value.shape[2])
    # a group's queries are rows of one product, so that keys are not repeated: [batch, kv_heads, chunks, rows, width]
    queries = [x.unflatten(3, (-1, chunk)).movedim(3, 2).flatten(3, 4) for x in queries]
    value, *keys = (x.unflatten(2, (-1, chunk)) for x in (value, *keys))
    pairs = [_lower(query @ key.mT) for query, key in zip(queries, keys, strict=True)]
    befores, sums = zip(
        *(_running(before, added) for before, added in zip(sums, _summed(keys, value), strict=True)), strict=True
    )
    numerator, denominator = _from_sums(queries, befores)
    output = _divided(numerator.add_(pairs[-1] @ value), denominator + pairs[0].sum(dim=-1, keepdim=True))
    output = output.unflatten(3, (-1, chunk)).movedim(2, 3).flatten(3, 4)
    return output, *sums


def _features(call: Call, x: Tensor, waves: tuple[Tensor, ...], masked: Tensor | None = None) -> tuple[Tensor, ...]:
    """Return φ(x), as the denominator has it; and where there are waves, turned by these, for the numerator."""
    spec = call.case.spec
    assert isinstance(spec.weighting, Linear)
    features = stages.features(spec.weighting, x)
    if masked is not None:
        features = features.masked_fill(masked, 0.0)  # φ(0) is not 0
    if not waves:
        return (features,)
    cos, sin = (wave.view(wave.shape[0], *(1,) * (x.dim() - 3), *wave.shape[2:]) for wave in waves)
    return features, rotary.turn(features, (cos, sin), spec, start=spec.rotary_offset)


def _waves(call: Call, positions: Tensor) -> tuple[Tensor, ...]:
    spec = call.case.spec
    return rotary.waves(positions, spec, compute_dtype(call.case.dtype)) if isinstance(spec.position, Rotary) else ()


def _lower(pairs: Tensor) -> Tensor:
    """Keep of ``[..., group · chunk, chunk]`` the pairs whose key is no later than their query."""
    by_chunk: Tensor = pairs.unflatten(-2, (-1, pairs.shape[-1]))
    return by_chunk.tril().flatten(-3, -2)


def _running(before: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is there before each chunk, ``[batch, kv_heads, chunks, ...]``, and after the last."""
    *befores, after = itertools.accumulate(added.unbind(2), initial=before)
    return torch.stack(befores, dim=2), after


def _summed(keys: Sequence[Tensor], value: Tensor) -> tuple[Tensor, Tensor]:
    return keys[-1].mT @ value, keys[0].sum(dim=-2)


def _added(sums: Sequence[Tensor], more: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(one + other for one, other in zip(sums, more, strict=True))


def _from_sums(queries: Sequence[Tensor], sums: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return numerator ``[..., rows, v_head_dim]`` and denominator ``[..., rows, 1]``."""
    return queries[-1] @ sums[0], queries[0] @ sums[1][..., None]


def _divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient; zeros where the denominator is 0."""
    nothing = denominator == 0
    return (numerator / denominator.masked_fill(nothing, 1.0)).masked_fill_(nothing, 0.0)


def _spoiled(call: Call, bad: Tensor) -> Tensor:
    """Return which output elements see a value, or a key, that is not finite."""
    if call.case.spec.pattern != Causal():
        return bad.any(dim=2, keepdim=True)
    return bad.cumsum(dim=2, dtype=torch.int32)[:, :, call.case.kv_len - call.case.q_len :] > 0


KERNEL = Kernel("linear", "running sums over keys, in chunks of queries", refuse, run)
