"""Attention as its definition reads: one sequence, one head, one score matrix at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from polyhead.errors import ShapeError
from polyhead.oracle.stages import Array, Sequence, head_stages
from polyhead.spec import AttentionSpec, Latent


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
    output = np.zeros((batch, spec.num_heads, q_len, spec.v_head_dim))
    weights = np.zeros((batch, spec.num_heads, q_len, kv_len))
    positions = _positions(query_positions, key_positions, (batch, q_len, kv_len))
    may_meet = _may_meet(key_mask, segments, (batch, q_len, kv_len))
    for b in range(batch):
        sequence = sequence_of(arrays, spec, tensors, b, (positions[0][b], positions[1][b]), may_meet[b])
        for head in range(spec.num_heads):
            for stage in head_stages(sequence, spec, tensors, head):
                if stage.name == "weights":
                    weights[b, head] = stage.values
                elif stage.name == "output":
                    output[b, head] = stage.values
    return (output, weights) if return_weights else output


def checked(
    inputs: Mapping[str, ArrayLike | None], spec: AttentionSpec, params: Mapping[str, ArrayLike]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return inputs and learned tensors as float64 arrays, or raise ShapeError where one does not fit the spec."""
    arrays = {name: np.asarray(array, np.float64) for name, array in inputs.items() if array is not None}
    _check_inputs(arrays, spec)
    return arrays, _parameters(spec, params)


def sequence_of(
    arrays: Mapping[str, Array],
    spec: AttentionSpec,
    params: Mapping[str, Array],
    index: int,
    positions: tuple[Array, Array],
    may_meet: Array | None = None,
) -> Sequence:
    """Return one sequence of a batch, with the keys and values of every head.

    Args:
        arrays: The inputs, checked.
        spec: The mechanism.
        params: The learned tensors, checked.
        index: Its number in the batch.
        positions: Its queries' and its keys', ``[q_len]`` and ``[kv_len]``.
        may_meet: ``[q_len, kv_len]``. None: everything.

    Returns:
        The sequence.
    """
    one = {name: array[index] for name, array in arrays.items()}
    if may_meet is None:
        may_meet = np.ones((len(positions[0]), len(positions[1])), dtype=bool)
    return Sequence(one["query"], *expand(one, spec, params), *positions, may_meet)


def expand(arrays: Mapping[str, Array], spec: AttentionSpec, params: Mapping[str, Array]) -> tuple[Array, Array]:
    """Return keys and values of every head, from what one sequence stores."""
    if not isinstance(spec.storage, Latent):
        return arrays["key"], arrays["value"]
    latent, rope_key = np.split(arrays["key"][0], [spec.storage.kv_lora_rank], axis=-1)
    nope = np.einsum("tr,mdr->mtd", latent, params["w_uk"])
    shared = np.broadcast_to(rope_key, (*nope.shape[:-1], rope_key.shape[-1]))
    return np.concatenate([nope, shared], axis=-1), np.einsum("tr,hdr->htd", latent, params["w_uv"])


def _positions(
    query_positions: ArrayLike | None, key_positions: ArrayLike | None, sizes: tuple[int, int, int]
) -> tuple[Array, Array]:
    """Return positions ``[batch, q_len]`` and ``[batch, kv_len]``."""
    batch, q_len, kv_len = sizes
    q_pos = np.arange(kv_len - q_len, kv_len) if query_positions is None else query_positions
    k_pos = np.arange(kv_len) if key_positions is None else key_positions
    return (
        np.broadcast_to(_of_shape("query_positions", q_pos, (q_len,), (batch, q_len)), (batch, q_len)),
        np.broadcast_to(_of_shape("key_positions", k_pos, (kv_len,), (batch, kv_len)), (batch, kv_len)),
    )


def _may_meet(key_mask: ArrayLike | None, segments: ArrayLike | None, sizes: tuple[int, int, int]) -> Array:
    """Return which pairs the key mask and the segments leave, ``[batch, q_len, kv_len]``."""
    batch, q_len, kv_len = sizes
    may_meet = np.ones(sizes, dtype=bool)
    if key_mask is not None:
        may_meet &= _of_shape("key_mask", key_mask, (batch, kv_len)).astype(bool)[:, None, :]
    if segments is not None:
        of_query, of_key = (_of_shape("segments", segments, (batch, length)) for length in (q_len, kv_len))
        may_meet &= of_query[:, :, None] == of_key[:, None, :]
    return may_meet


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
