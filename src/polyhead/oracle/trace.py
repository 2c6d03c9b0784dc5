"""How one query's weights come about: the stages of `attend`, and the tiles of `attend_tiled`, for it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from polyhead.oracle.attend import checked, sequence_of
from polyhead.oracle.stages import Array, Sequence, Stage, head_stages, last
from polyhead.oracle.tiled import Tile, check_tiled, tile_stages
from polyhead.spec import AttentionSpec


class Trace(NamedTuple):
    """One query's way through a head.

    Attributes:
        stages: The stages that `attend` goes through; their arrays have a single query.
        tiles: Those of `attend_tiled`, where tiles were asked for.
        output: The output ``[v_head_dim]``: the tiles', where there are any.
    """

    stages: list[Stage]
    tiles: list[Tile]
    output: Array


def trace(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike | None,
    spec: AttentionSpec,
    *,
    head: int,
    index: int,
    positions: tuple[ArrayLike, ArrayLike] | None = None,
    params: Mapping[str, ArrayLike] | None = None,
    tile: int | None = None,
) -> Trace:
    """Return the stages through which one query of one sequence goes.

    Args:
        query: As `attend` takes it, of a single sequence: ``[1, num_heads · maps, q_len, width]``.
        key: ``[1, num_kv_heads · maps, kv_len, width]``, or latent rows.
        value: ``[1, num_kv_heads, kv_len, v_head_dim]``, or None with `Latent`.
        spec: The mechanism.
        head: The head.
        index: Which query, from 0.
        positions: The queries' and the keys'. None: the last query at the last key.
        params: The learned tensors.
        tile: Keys in a tile. None: no tiles.

    Returns:
        The stages.

    Raises:
        ShapeError: If an array does not fit the spec or a parameter is missing.
        UnsupportedError: If tiles are asked for and the spec has no online softmax.
    """
    arrays, tensors = checked({"query": query, "key": key, "value": value}, spec, params or {})
    q_len, kv_len = arrays["query"].shape[-2], arrays["key"].shape[-2]
    q_pos, k_pos = positions or (np.arange(kv_len - q_len, kv_len), np.arange(kv_len))
    whole = sequence_of(arrays, spec, tensors, 0, (np.asarray(q_pos), np.asarray(k_pos)))
    one = _of_query(whole, index)
    stages = list(head_stages(one, spec, tensors, head))
    if tile is None:
        return Trace(stages, [], stages[-1].values[0])
    check_tiled(spec, tile)
    tiles: list[Tile] = []
    output = last(tile_stages(one, spec, tensors, head, tile), tiles)
    return Trace(stages, tiles, output[0])


def _of_query(sequence: Sequence, index: int) -> Sequence:
    return sequence._replace(
        query=sequence.query[:, [index]],
        query_positions=sequence.query_positions[[index]],
        may_meet=sequence.may_meet[[index]],
    )
