"""How a head's weights and output come about, stage by stage; the oracle's `attend` is the last of them.

Each stage is yielded as it is computed, and what a generator returns is its last. Who wants the result alone runs it
to its end, so that what is shown and what is computed is one code.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead.oracle.rotate import rotate
from polyhead.spec import Alibi, AttentionSpec, Differential, Linear, RelativeBias, Rotary, Softmax
from polyhead.spec.position import ShawBias

Array = NDArray[Any]


class Sequence(NamedTuple):
    """One sequence of a batch, expanded to full heads; every array float64.

    Attributes:
        query: ``[num_heads · maps, q_len, width]``.
        key: ``[num_kv_heads · maps, kv_len, width]``.
        value: ``[num_kv_heads, kv_len, v_head_dim]``.
        query_positions: ``[q_len]``.
        key_positions: ``[kv_len]``.
        may_meet: ``[q_len, kv_len]``, what the key mask and the segments leave.
    """

    query: Array
    key: Array
    value: Array
    query_positions: Array
    key_positions: Array
    may_meet: Array


class Stage(NamedTuple):
    """One stage of a head.

    Attributes:
        name: What it is: ``"query"``, ``"keys"``, ``"products"`` and so on, to ``"weights"``, ``"values"`` and
            ``"output"``.
        values: ``[q_len, kv_len]``; of a query, a sum or an output ``[q_len, width]``; of keys or values
            ``[1 or q_len, kv_len, width]``.
        map: Which score map it belongs to, 0 or 1; 0 where there is one, or where two have become one.
    """

    name: str
    values: Array
    map: int = 0


def last(stages: Generator[Any, None, Array], into: list[Any] | None = None) -> Array:
    """Run a generator to its end and return what it returns, the last stage's result; ``into`` gets what it yields."""
    while True:
        try:
            stage = next(stages)
        except StopIteration as end:
            return np.asarray(end.value)
        if into is not None:
            into.append(stage)


def head_stages(
    sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int
) -> Generator[Stage, None, Array]:
    """Go through a head's stages, from its query and keys to its output, yielding each.

    Among them are ``"weights"`` ``[q_len, kv_len]`` and ``"output"`` ``[q_len, v_head_dim]``.

    Args:
        sequence: One sequence.
        spec: The mechanism.
        params: The learned tensors.
        head: The head.

    Returns:
        The output.
    """
    allowed = allowed_pairs(sequence, spec, head)
    yield Stage("allowed", allowed)
    if isinstance(spec.weighting, Linear):
        weights = yield from _linear_stages(sequence, spec, head, allowed)
    elif isinstance(spec.weighting, Softmax):
        sink = params["sinks"][head] if spec.weighting.sink else None
        score = yield from score_stages(sequence, spec, params, head, 0)
        weights = yield from _softmax_stages(score, allowed, sink, 0)
    else:
        weights = yield from _difference_stages(sequence, spec, params, head, allowed)
    yield Stage("weights", weights)
    yield Stage("values", sequence.value[head // spec.group_size][None])
    output = _mix(weights, allowed, sequence, spec, params, head)
    if isinstance(spec.weighting, Differential) and spec.weighting.form != "clipped":
        yield Stage("mixed", output)
        output = _sub_norm(output, spec.weighting, params)
    yield Stage("output", output)
    return output


def allowed_pairs(sequence: Sequence, spec: AttentionSpec, head: int) -> Array:
    """Return ``[q_len, kv_len]``: the pattern, less what the key mask and the segments forbid."""
    q_pos, k_pos = sequence.query_positions, sequence.key_positions
    allowed = spec.pattern.allowed(q_pos, k_pos, kv_len=len(k_pos), head=head)
    return np.asarray(allowed & sequence.may_meet)


def score_stages(
    sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int, index: int
) -> Generator[Stage, None, Array]:
    """Go through the stages of a map's scores ``[q_len, kv_len]``, yielding each: q·k, scale, softcap, bias.

    Args:
        sequence: One sequence.
        spec: The mechanism.
        params: The learned tensors.
        head: The head.
        index: Which of its maps.

    Returns:
        The scores, before any mask.
    """
    query_map, key_map = spec.map_of(head, index)
    query, keys = sequence.query[query_map], sequence.key[key_map][None]
    yield Stage("query", query, index)
    yield Stage("keys", keys, index)
    if isinstance(spec.position, Rotary):
        query, keys = _rotated(query, keys[0], sequence, spec)
        yield Stage("rotated query", query, index)
        yield Stage("rotated keys", keys, index)
    if isinstance(spec.position, ShawBias):
        keys = keys + params["relative_keys"][_entries(sequence, spec.position)]
        yield Stage("relative keys", keys, index)
    score = _products(query, keys)
    yield Stage("products", score, index)
    score = spec.scale * score
    yield Stage("scaled", score, index)
    if isinstance(spec.weighting, Softmax) and spec.weighting.softcap is not None:
        score = spec.weighting.softcap * np.tanh(score / spec.weighting.softcap)
        yield Stage("capped", score, index)
    bias = _bias(sequence, spec, params, head)
    if bias is not None:
        yield Stage("bias", bias, index)
        score = score + bias
        yield Stage("biased", score, index)
    return np.asarray(score)


def _products(query: Array, keys: Array) -> Array:
    """Return q·k of keys ``[1 or q_len, kv_len, width]``: with some positions each query meets keys of its own."""
    return np.asarray(np.einsum("qd,qkd->qk", query, np.broadcast_to(keys, (len(query), *keys.shape[1:]))))


def _bias(sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int) -> Array | None:
    """Return what position adds to the score, or None where it adds nothing."""
    if isinstance(spec.position, Alibi):
        return np.asarray(-spec.position.head_slopes(spec.num_heads)[head] * np.abs(_distances(sequence)))
    if isinstance(spec.position, RelativeBias) and not isinstance(spec.position, ShawBias):
        return np.asarray(params["bias_table"][_entries(sequence, spec.position), head])
    return None


def _softmax_stages(score: Array, allowed: Array, sink: Any, index: int) -> Generator[Stage, None, Array]:
    """Go through softmax over what a query may see; zeros where that is nothing."""
    score = np.where(allowed, score, -np.inf)
    yield Stage("masked", score, index)
    top = score.max(axis=-1, keepdims=True, initial=-np.inf if sink is None else sink)
    exponentials = np.where(allowed, np.exp(score - np.where(top == -np.inf, 0.0, top)), 0.0)
    yield Stage("exponentials", exponentials, index)
    total = exponentials.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    yield Stage("sum", total, index)
    shares = np.asarray(exponentials / np.where(total == 0, 1.0, total))
    yield Stage("softmax", shares, index)
    return shares


def _difference_stages(
    sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int, allowed: Array
) -> Generator[Stage, None, Array]:
    """Go through two maps and their difference."""
    assert isinstance(spec.weighting, Differential)
    maps = []
    for index in (0, 1):
        score = yield from score_stages(sequence, spec, params, head, index)
        maps.append((yield from _softmax_stages(score, allowed, None, index)))
    share = _lambda(spec.weighting, params)
    yield Stage("lambda", np.full((len(maps[0]), 1), share))
    weights = np.asarray(maps[0] - share * maps[1])
    yield Stage("difference", weights)
    if spec.weighting.form == "clipped":
        weights = np.maximum(weights, 0.0)
        yield Stage("clipped", weights)
        weights = _shares(weights)
    return weights


def _linear_stages(sequence: Sequence, spec: AttentionSpec, head: int, allowed: Array) -> Generator[Stage, None, Array]:
    """Go through φ(q)·φ(k) over its row's sum; RoPE turns the numerator alone."""
    assert isinstance(spec.weighting, Linear)
    query_map, key_map = spec.map_of(head, 0)
    yield Stage("query", sequence.query[query_map])
    yield Stage("keys", sequence.key[key_map][None])
    query = _feature_map(spec.weighting, sequence.query[query_map])
    key = _feature_map(spec.weighting, sequence.key[key_map])
    yield Stage("query features", query)
    yield Stage("key features", key[None])
    denominator = query @ key.T
    yield Stage("feature products", denominator)
    keys = key[None]
    if isinstance(spec.position, Rotary):
        query, keys = _rotated(query, key, sequence, spec)
        yield Stage("rotated query", query)
        yield Stage("rotated keys", keys)
    numerator = _products(query, keys)
    if isinstance(spec.position, Rotary):
        yield Stage("products", numerator)
    seen = np.where(allowed, denominator, 0.0)
    yield Stage("seen products", seen)
    total = seen.sum(axis=-1, keepdims=True)
    yield Stage("sum", total)
    return np.where(allowed & (total != 0), numerator / np.where(total == 0, 1.0, total), 0.0)


def _mix(
    weights: Array, allowed: Array, sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int
) -> Array:
    """Return weighted values ``[q_len, v_head_dim]``; a value that a query may not see cannot touch it, NaN or not."""
    value = sequence.value[head // spec.group_size]
    output = np.zeros((len(weights), value.shape[-1]))
    relative = (
        params["relative_values"][_entries(sequence, spec.position)] if isinstance(spec.position, ShawBias) else None
    )
    for row, seen in enumerate(allowed):
        values = value[seen] if relative is None else value[seen] + relative[row, seen]
        output[row] = weights[row, seen] @ values
    return output


def _rotated(query: Array, key: Array, sequence: Sequence, spec: AttentionSpec) -> tuple[Array, Array]:
    assert isinstance(spec.position, Rotary)
    q_pos, k_pos = sequence.query_positions, sequence.key_positions
    frequencies = spec.position.frequencies(spec.rotary_dim, q_pos)
    where = {"start": spec.rotary_offset, "width": spec.rotary_dim}
    per_query = np.broadcast_to(frequencies, (len(q_pos), frequencies.shape[-1]))
    key_angles = (
        np.einsum("k,qt->qkt", k_pos, per_query) if spec.position.per_query else k_pos[None, :, None] * frequencies
    )
    return (
        rotate(query, q_pos[:, None] * per_query, spec.position, **where),
        rotate(key[None], key_angles, spec.position, **where),
    )


def _feature_map(weighting: Linear, x: Array) -> Array:
    if weighting.feature_map == "relu":
        return np.maximum(x, 0.0)
    if weighting.feature_map == "softplus":
        return np.logaddexp(x, 0.0)
    return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))  # elu(x) + 1


def _shares(weights: Array) -> Array:
    total = weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights / np.where(total == 0, 1.0, total))


def _lambda(weighting: Differential, params: Mapping[str, Array]) -> Any:
    if weighting.form == "clipped":
        return weighting.initial_lambda
    first, second = (np.exp(params[f"lambda_q{i}"] @ params[f"lambda_k{i}"]) for i in (1, 2))
    return first - second + weighting.initial_lambda


def _sub_norm(output: Array, weighting: Differential, params: Mapping[str, Array]) -> Array:
    size = np.sqrt((output**2).mean(axis=-1, keepdims=True) + weighting.norm_eps)
    return np.asarray((1 - weighting.initial_lambda) * output / size * params.get("sub_norm", 1.0))


def _distances(sequence: Sequence) -> Array:
    """Return ``key - query`` for each pair."""
    return np.asarray(sequence.key_positions[None, :] - sequence.query_positions[:, None])


def _entries(sequence: Sequence, position: RelativeBias) -> Array:
    """Return each pair's entry in the learned table."""
    limit = position.max_distance
    return np.asarray(position.buckets()[np.clip(_distances(sequence), -limit, limit) + limit])
