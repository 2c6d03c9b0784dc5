"""Flash attention as the textbook has it: tiles of keys and an online softmax, no whole row ever stored."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from polyhead.errors import UnsupportedError
from polyhead.oracle.attend import checked, sequence_of
from polyhead.oracle.stages import Array, Sequence, allowed_pairs, last, score_stages
from polyhead.spec import AttentionSpec, Softmax
from polyhead.spec.choice import as_int
from polyhead.spec.position import ShawBias


class Tile(NamedTuple):
    """What a head has after a tile of keys.

    Attributes:
        keys: Which keys the tile holds.
        exponentials: ``[q_len, tile]``, of its scores less the largest so far.
        maximum: ``[q_len, 1]``, the largest score so far.
        total: ``[q_len, 1]``, the sum of exponentials so far, each less that.
        output: ``[q_len, v_head_dim]``, the values weighted by them and summed so far.
    """

    keys: slice
    exponentials: Array
    maximum: Array
    total: Array
    output: Array


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
    check_tiled(spec, tile)
    arrays, tensors = checked({"query": query, "key": key, "value": value}, spec, params or {})
    batch, _, q_len, _ = arrays["query"].shape
    kv_len = arrays["key"].shape[-2]
    output = np.zeros((batch, spec.num_heads, q_len, spec.v_head_dim))
    positions = np.arange(kv_len - q_len, kv_len), np.arange(kv_len)
    for b in range(batch):
        sequence = sequence_of(arrays, spec, tensors, b, positions)
        for head in range(spec.num_heads):
            output[b, head] = last(tile_stages(sequence, spec, tensors, head, tile))
    return output


def check_tiled(spec: AttentionSpec, tile: int) -> None:
    """Raise UnsupportedError for a spec whose softmax cannot go tile by tile, SpecError for a tile without a key."""
    if not isinstance(spec.weighting, Softmax) or isinstance(spec.position, ShawBias):
        raise UnsupportedError(f"tiles with an online softmax need softmax weights and plain values, got {spec!r}")
    as_int("tile", tile, at_least=1)


def tile_stages(
    sequence: Sequence, spec: AttentionSpec, params: Mapping[str, Array], head: int, tile: int
) -> Generator[Tile, None, Array]:
    """Go through a head's keys tile by tile, yielding what the head has after each.

    Args:
        sequence: One sequence.
        spec: The mechanism.
        params: The learned tensors.
        head: The head.
        tile: Keys in a tile.

    Returns:
        The output ``[q_len, v_head_dim]``: the last tile's over its sum.
    """
    assert isinstance(spec.weighting, Softmax)
    q_len, kv_len = sequence.may_meet.shape
    value = sequence.value[head // spec.group_size]
    has_sink = spec.weighting.sink
    maximum = np.full((q_len, 1), params["sinks"][head] if has_sink else -np.inf)
    total = np.full((q_len, 1), 1.0 if has_sink else 0.0)
    output = np.zeros((q_len, value.shape[-1]))
    allowed = allowed_pairs(sequence, spec, head)
    for start in range(0, kv_len, tile):
        keys = slice(start, min(start + tile, kv_len))
        scores = last(score_stages(_tile_of(sequence, keys), spec, params, head, 0))
        score = np.where(allowed[:, keys], scores, -np.inf)
        highest = np.maximum(maximum, score.max(axis=-1, keepdims=True))
        base = np.where(highest == -np.inf, 0.0, highest)  # a row that has seen nothing yet
        shrink, part = np.exp(maximum - base), np.exp(score - base)
        total = total * shrink + part.sum(axis=-1, keepdims=True)
        output = output * shrink + part @ value[keys]
        maximum = highest
        yield Tile(keys, part, maximum, total, output)
    return np.asarray(output / np.where(total == 0, 1.0, total))


def _tile_of(sequence: Sequence, keys: slice) -> Sequence:
    return sequence._replace(key=sequence.key[:, keys], key_positions=sequence.key_positions[keys])
