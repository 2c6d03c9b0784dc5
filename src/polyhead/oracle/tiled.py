"""Flash attention as the textbook has it: tiles of keys and an online softmax, no whole row ever stored."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from polyhead.errors import UnsupportedError
from polyhead.oracle.attend import Array, Sequence, allowed_pairs, checked, expand, scores
from polyhead.spec import AttentionSpec, Softmax
from polyhead.spec.choice import as_int
from polyhead.spec.position import ShawBias


def attend_tiled(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike | None,
    spec: AttentionSpec,
    *,
    tile: int = 2,
    params: Mapping[str, ArrayLike] | None = None,
) -> Array:
    """Compute softmax attention tile by tile: a running maximum, a running sum, a running output.

    Each tile of keys first rescales what came before by ``exp(old maximum − new maximum)``, then adds its own
    part, so the result is that of the whole row, to rounding.

    Args:
        query: ``[batch, num_heads, q_len, width]``.
        key: ``[batch, num_kv_heads, kv_len, width]``, or latent rows.
        value: ``[batch, num_kv_heads, kv_len, v_head_dim]``, or None with `Latent`.
        spec: A spec with softmax weighting and without Shaw's relative values.
        tile: Keys in a tile.
        params: The learned tensors.

    Returns:
        ``[batch, num_heads, q_len, v_head_dim]``.

    Raises:
        UnsupportedError: If the weighting is not softmax, or values are relative.
        SpecError: If a tile has no key.
        ShapeError: If an array does not fit the spec or a parameter is missing.

    *Source*: Dao et al., arXiv 2205.14135, algorithm 1; the online softmax is arXiv 1805.02867.
    """
    if not isinstance(spec.weighting, Softmax) or isinstance(spec.position, ShawBias):
        raise UnsupportedError(f"tiles with an online softmax need softmax weights and plain values, got {spec!r}")
    as_int("tile", tile, at_least=1)
    arrays, tensors = checked({"query": query, "key": key, "value": value}, spec, params or {})
    batch, _, q_len, _ = arrays["query"].shape
    kv_len = arrays["key"].shape[-2]
    output = np.zeros((batch, spec.num_heads, q_len, spec.v_head_dim))
    positions = np.arange(kv_len - q_len, kv_len), np.arange(kv_len)
    for b in range(batch):
        one = {name: array[b] for name, array in arrays.items()}
        everything = np.ones((q_len, kv_len), dtype=bool)
        sequence = Sequence(one["query"], *expand(one, spec, tensors), *positions, everything)
        for head in range(spec.num_heads):
            output[b, head] = _one_head(sequence, spec, tensors, head, tile)
    return output


def _one_head(sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int, tile: int) -> Array:
    assert isinstance(spec.weighting, Softmax)
    q_len, kv_len = sequence.may_meet.shape
    value = sequence.value[head // spec.group_size]
    has_sink = spec.weighting.sink
    maximum = np.full((q_len, 1), params["sinks"][head] if has_sink else -np.inf)
    total = np.full((q_len, 1), 1.0 if has_sink else 0.0)
    output = np.zeros((q_len, value.shape[-1]))
    allowed = allowed_pairs(sequence, spec, head)
    for start in range(0, kv_len, tile):
        keys = slice(start, start + tile)
        score = np.where(allowed[:, keys], scores(_tile_of(sequence, keys), spec, params, head, 0), -np.inf)
        highest = np.maximum(maximum, score.max(axis=-1, keepdims=True))
        base = np.where(highest == -np.inf, 0.0, highest)  # a row that has seen nothing yet
        shrink, part = np.exp(maximum - base), np.exp(score - base)
        total = total * shrink + part.sum(axis=-1, keepdims=True)
        output = output * shrink + part @ value[keys]
        maximum = highest
    return np.asarray(output / np.where(total == 0, 1.0, total))


def _tile_of(sequence: Sequence, keys: slice) -> Sequence:
    return sequence._replace(key=sequence.key[:, keys], key_positions=sequence.key_positions[keys])
