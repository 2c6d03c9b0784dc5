"""Attention as its definition reads: one sequence, one head, one score matrix at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polyhead.errors import ShapeError
from polyhead.oracle.rotate import rotate
from polyhead.spec import Alibi, AttentionSpec, Differential, Latent, Linear, RelativeBias, Rotary, Softmax
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


def attend(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike | None,
    spec: AttentionSpec,
    *,
    params: Mapping[str, ArrayLike] | None = None,
    query_positions: ArrayLike | None = None,
    key_positions: ArrayLike | None = None,
    key_mask: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    return_weights: bool = False,
) -> Any:
    """Compute attention in float64 from the whole score matrix; the reference for every kernel.

    Takes what `polyhead.attend` takes, as NumPy arrays, and means the same.

    Args:
        query: ``[batch, num_heads · maps, q_len, width]``; maps is 2 with differential weighting, else 1.
        key: ``[batch, num_kv_heads · maps, kv_len, width]``, or the latent rows ``[batch, 1, kv_len, rank + rope]``.
        value: ``[batch, num_kv_heads, kv_len, v_head_dim]``, or None with `Latent`.
        spec: The mechanism.
        params: The learned tensors named by ``spec.parameter_shapes()``.
        query_positions: Whole numbers ``[q_len]`` or ``[batch, q_len]``. None: the last query at the last key.
        key_positions: Whole numbers ``[kv_len]`` or ``[batch, kv_len]``. None: from 0.
        key_mask: Booleans ``[batch, kv_len]``, True may be attended.
        segments: Whole numbers ``[batch, len]``; a pair meets only inside one segment.
        return_weights: Whether to return the weights too.

    Returns:
        Output ``[batch, num_heads, q_len, v_head_dim]``; with weights also ``[batch, num_heads, q_len, kv_len]``.

    Raises:
        ShapeError: If an array does not fit the spec or a parameter is missing.
    """
    arrays, tensors = checked({"query": query, "key": key, "value": value}, spec, params or {})
    batch, _, q_len, _ = arrays["query"].shape
    kv_len = arrays["key"].shape[-2]
    q_pos = np.arange(kv_len - q_len, kv_len) if query_positions is None else query_positions
    k_pos = np.arange(kv_len) if key_positions is None else key_positions
    q_pos = np.broadcast_to(_of_shape("query_positions", q_pos, (q_len,), (batch, q_len)), (batch, q_len))
    k_pos = np.broadcast_to(_of_shape("key_positions", k_pos, (kv_len,), (batch, kv_len)), (batch, kv_len))
    may_meet = np.ones((batch, q_len, kv_len), dtype=bool)
    if key_mask is not None:
        may_meet &= _of_shape("key_mask", key_mask, (batch, kv_len)).astype(bool)[:, None, :]
    if segments is not None:
        of_query, of_key = (_of_shape("segments", segments, (batch, length)) for length in (q_len, kv_len))
        may_meet &= of_query[:, :, None] == of_key[:, None, :]

    output = np.zeros((batch, spec.num_heads, q_len, spec.v_head_dim))
    weights = np.zeros((batch, spec.num_heads, q_len, kv_len))
    for b in range(batch):
        one = {name: array[b] for name, array in arrays.items()}
        sequence = Sequence(one["query"], *expand(one, spec, tensors), q_pos[b], k_pos[b], may_meet[b])
        for head in range(spec.num_heads):
            output[b, head], weights[b, head] = _one_head(sequence, spec, tensors, head)
    return (output, weights) if return_weights else output


def checked(
    inputs: Mapping[str, ArrayLike | None], spec: AttentionSpec, params: Mapping[str, ArrayLike]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return inputs and learned tensors as float64 arrays, or raise ShapeError where one does not fit the spec."""
    arrays = {name: np.asarray(array, np.float64) for name, array in inputs.items() if array is not None}
    _check_inputs(arrays, spec)
    return arrays, _parameters(spec, params)


def expand(arrays: Mapping[str, Array], spec: AttentionSpec, params: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return keys and values of every head, from what one sequence stores."""
    if not isinstance(spec.storage, Latent):
        return arrays["key"], arrays["value"]
    latent, rope_key = np.split(arrays["key"][0], [spec.storage.kv_lora_rank], axis=-1)
    nope = np.einsum("tr,mdr->mtd", latent, params["w_uk"])
    shared = np.broadcast_to(rope_key, (*nope.shape[:-1], rope_key.shape[-1]))
    return np.concatenate([nope, shared], axis=-1), np.einsum("tr,hdr->htd", latent, params["w_uv"])


def _one_head(sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int) -> tuple[Array, Array]:
    allowed = allowed_pairs(sequence, spec, head)
    if isinstance(spec.weighting, Linear):
        weights = _linear_weights(sequence, spec, head, allowed)
    elif isinstance(spec.weighting, Softmax):
        sink = params["sinks"][head] if spec.weighting.sink else None
        weights = _softmax(scores(sequence, spec, params, head, 0), allowed, sink)
    else:
        first, second = (_softmax(scores(sequence, spec, params, head, m), allowed, None) for m in (0, 1))
        weights = first - _lambda(spec.weighting, params) * second
        if spec.weighting.form == "clipped":
            weights = _shares(np.maximum(weights, 0.0))
    output = mix(weights, allowed, sequence, spec, params, head)
    if isinstance(spec.weighting, Differential) and spec.weighting.form != "clipped":
        output = _sub_norm(output, spec.weighting, params)
    return output, weights


def allowed_pairs(sequence: Sequence, spec: AttentionSpec, head: int) -> Array:
    """Return ``[q_len, kv_len]``: the pattern, less what the key mask and the segments forbid."""
    q_pos, k_pos = sequence.query_positions, sequence.key_positions
    allowed = spec.pattern.allowed(q_pos, k_pos, kv_len=len(k_pos), head=head)
    return np.asarray(allowed & sequence.may_meet)


def scores(sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int, index: int) -> Array:
    """Return map ``index`` of a head's scores ``[q_len, kv_len]``: scale, then softcap, then bias."""
    query_map, key_map = spec.map_of(head, index)
    query, key = sequence.query[query_map], sequence.key[key_map]
    keys = key[None, :, :]  # [1 or q_len, kv_len, width]: with some positions each query meets keys of its own
    if isinstance(spec.position, Rotary):
        query, keys = _rotated(query, key, sequence, spec)
    if isinstance(spec.position, ShawBias):
        keys = keys + params["relative_keys"][_entries(sequence, spec.position)]
    score = spec.scale * np.einsum("qd,qkd->qk", query, np.broadcast_to(keys, (len(query), *keys.shape[1:])))
    if isinstance(spec.weighting, Softmax) and spec.weighting.softcap is not None:
        score = spec.weighting.softcap * np.tanh(score / spec.weighting.softcap)
    if isinstance(spec.position, Alibi):
        slope = spec.position.head_slopes(spec.num_heads)[head]
        score = score - slope * np.abs(_distances(sequence))
    elif isinstance(spec.position, RelativeBias) and not isinstance(spec.position, ShawBias):
        score = score + params["bias_table"][_entries(sequence, spec.position), head]
    return np.asarray(score)


def mix(
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


def _linear_weights(sequence: Sequence, spec: AttentionSpec, head: int, allowed: Array) -> Array:
    """Return φ(q)·φ(k) over its row's sum; RoPE turns the numerator alone."""
    assert isinstance(spec.weighting, Linear)
    query_map, key_map = spec.map_of(head, 0)
    query = _feature_map(spec.weighting, sequence.query[query_map])
    key = _feature_map(spec.weighting, sequence.key[key_map])
    denominator = query @ key.T
    keys = key[None]
    if isinstance(spec.position, Rotary):
        query, keys = _rotated(query, key, sequence, spec)
    numerator = np.einsum("qd,qkd->qk", query, np.broadcast_to(keys, (len(query), *keys.shape[1:])))
    total = np.where(allowed, denominator, 0.0).sum(axis=-1, keepdims=True)
    return np.where(allowed & (total != 0), numerator / np.where(total == 0, 1.0, total), 0.0)


def _feature_map(weighting: Linear, x: Array) -> Array:
    if weighting.feature_map == "relu":
        return np.maximum(x, 0.0)
    if weighting.feature_map == "softplus":
        return np.logaddexp(x, 0.0)
    return np.where(x > 0, x + 1.0, np.exp(np.minimum(x, 0.0)))  # elu(x) + 1


def _softmax(score: Array, allowed: Array, sink: Any) -> Array:
    """Return softmax over what a query may see; zeros where that is nothing."""
    score = np.where(allowed, score, -np.inf)
    top = score.max(axis=-1, keepdims=True, initial=-np.inf if sink is None else sink)
    exponentials = np.where(allowed, np.exp(score - np.where(top == -np.inf, 0.0, top)), 0.0)
    total = exponentials.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - top)
    return np.asarray(exponentials / np.where(total == 0, 1.0, total))


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


def _of_shape(name: str, given: ArrayLike, *shapes: tuple[int, ...]) -> Array:
    array = np.asarray(given)
    if array.shape not in shapes:
        raise ShapeError(f"{name} has shape {list(array.shape)}; give {' or '.join(str(list(s)) for s in shapes)}")
    return array


def _parameters(spec: AttentionSpec, params: Mapping[str, ArrayLike]) -> dict[str, Array]:
    shapes = spec.parameter_shapes()
    if unknown := sorted(set(params) - set(shapes)):
        raise ShapeError(f"params has {unknown[0]!r}, which this spec does not; it has {', '.join(shapes) or 'none'}")
    arrays = {name: np.asarray(array, np.float64) for name, array in params.items()}
    for name, shape in shapes.items():
        if name not in arrays:
            raise ShapeError(f"params lacks {name!r} of shape {list(shape)}, which this spec learns")
        if arrays[name].shape != shape:
            raise ShapeError(f"params[{name!r}] has shape {list(arrays[name].shape)}; the spec needs {list(shape)}")
    return arrays


def _check_inputs(arrays: Mapping[str, Array], spec: AttentionSpec) -> None:
    for name, expected in spec.input_shapes().items():
        array = arrays.get(name)
        if (array is None) != (expected is None):
            raise ShapeError(f"{name} must {'not ' if expected is None else ''}be given for {spec.storage!r}")
        if array is None or expected is None:
            continue
        if array.ndim != 4 or (array.shape[1], array.shape[3]) != expected:
            raise ShapeError(
                f"{name} has shape {list(array.shape)}; the spec needs [batch, {expected[0]}, len, {expected[1]}]"
            )
        if array.shape[0] != arrays["query"].shape[0] or (name == "value" and array.shape[2] != arrays["key"].shape[2]):
            raise ShapeError(f"{name} has shape {list(array.shape)}, which fits neither query's batch nor key's length")
