"""A pattern and a bias laid out as tiles of consecutive queries, so that no matrix of all pairs is ever made.

Where a pattern is a band, both it and a bias that goes by distance depend on ``key − query`` alone. With the queries
in reverse order the mask of a tile is then a Toeplitz matrix, ``mask[i, j] = vector[start + i + j]``, which strides
over one vector give without a matrix; that of a narrow band is small, and the same for all tiles. Elsewhere a
tile's mask is formed, see `formed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from polyhead.kernels.common import Call, Case
from polyhead.kernels.flash import KEYS_AT_ONCE, Tile, joins_exactly
from polyhead.kernels.formed import formed
from polyhead.position import alibi, relative
from polyhead.spec import Alibi, Band, RelativeBias

BAND_ROWS = 64
"""Queries in a tile of a narrow band: fewer lose more to calls, more see more keys in vain."""

TOGETHER_BYTES = 2**23
"""What the keys of tiles that are computed together take at most; fewer calls cost less, most of all on busy cores."""

GATHERED_BYTES = 2**21
"""The same where the keys are gathered, which is to be found in a processor's own cache when it is computed with."""

WIDE_ROWS = 768
"""Queries in a tile where each of them sees thousands of keys; the operator is quickest from so many on."""

NARROW = 2048
"""Keys that a query of a narrow band sees at most."""


def distance_bias(call: Call) -> Tensor | None:
    """Return the bias of each distance ``key − query`` from ``1 − kv_len`` to ``q_len − 1``.

    Args:
        call: What is asked.

    Returns:
        ``[num_heads, kv_len + q_len − 1]``, in the compute dtype; None where position adds no bias.
    """
    case, position = call.case, call.case.spec.position
    distances = torch.arange(1 - case.kv_len, case.q_len, device=call.query.device)[None]
    origin = distances.new_zeros(1, 1)
    if isinstance(position, Alibi):
        dtype = torch.promote_types(case.dtype, torch.float32)
        return alibi.bias(case.spec, origin, distances, dtype)[0, :, 0]
    if isinstance(position, RelativeBias):
        return relative.bias(call.params["bias_table"], relative.entries(case.spec, origin, distances))[0, :, 0]
    return None


def lay_out(call: Call, heads: range, bias: Tensor | None) -> Iterator[Tile]:
    """Return the tiles of a call.

    Args:
        call: What is asked.
        heads: The query heads that the tiles are for.
        bias: Of these heads, see `distance_bias`.

    Returns:
        The tiles.
    """
    pattern = call.case.spec.pattern
    is_even = call.case.aligned and call.key_mask is None and call.segments is None
    if isinstance(pattern, Band) and is_even:
        return together(call, band(call, pattern, bias))
    return together(call, formed(call, heads))


def band(call: Call, pattern: Band, bias: Tensor | None, *, last: int | None = None) -> Iterator[Tile]:
    """Return the tiles of a band.

    Args:
        call: What is asked.
        pattern: The band.
        bias: See `distance_bias`.
        last: The greatest distance that is seen, where it is less than the band's own; it may be negative.

    Yields:
        The tiles; their masks are views of one vector for each head.
    """
    case = call.case
    right = min(math.inf if pattern.right is None else pattern.right, math.inf if last is None else last)
    left = math.inf if pattern.left is None else pattern.left
    first = case.kv_len - case.q_len
    if bias is None and (left, right) == (math.inf, 0) and first >= 0 and joins_exactly(case):
        yield from _staircase(case)
        return
    vector = _band_vector(call, left, right, bias)
    narrow = left + right < NARROW
    step = BAND_ROWS if narrow else WIDE_ROWS
    masks: dict[Any, Tensor] = {}
    for start in range(0, case.q_len, step):
        stop = min(start + step, case.q_len)
        low = max(0, first + start - left)
        high = min(case.kv_len, first + stop + right)
        queries = slice(start, stop)
        if low >= high:
            yield Tile(queries, ())
            continue
        low, high = int(low), int(high)
        mask = None
        if vector is not None:
            view = _toeplitz(case, vector, queries, slice(low, high))
            name = (view.storage_offset(), view.shape)
            if name not in masks:  # a small one is turned round once, instead of all queries
                masks[name] = view.flip(2) if narrow else view
            mask = masks[name]
        yield Tile(queries, (slice(low, high),), mask, flipped=mask is not None and not narrow)


def _staircase(case: Case) -> Iterator[Tile]:
    """Yield causal tiles on the diagonal, and what their queries meet before, none of which needs a mask."""
    first = case.kv_len - case.q_len
    steps = [slice(start, min(start + KEYS_AT_ONCE, case.q_len)) for start in range(0, case.q_len, KEYS_AT_ONCE)]
    for queries in steps:
        keys = slice(first + queries.start, first + queries.stop)
        yield Tile(queries, (keys,), causal=True, part="first" if keys.start else "whole")
    for queries in steps:
        if first + queries.start:
            yield Tile(queries, (slice(0, first + queries.start),), part="more")


def _toeplitz(case: Case, vector: Tensor, queries: slice, keys: slice) -> Tensor:
    """Return the mask of some pairs, ``[1, heads or 1, queries, keys]``, a view; the last query comes first."""
    shape = (1, len(vector), queries.stop - queries.start, keys.stop - keys.start)
    begin = case.q_len + keys.start - queries.stop  # of the last query's distance from the lowest key
    return vector.as_strided(shape, (0, vector.stride(0), 1, 1), vector.storage_offset() + begin)


def together(call: Call, tiles: Iterator[Tile]) -> Iterator[Tile]:
    """Put tiles of one shape and one mask that follow each other together.

    Args:
        call: What is asked.
        tiles: The tiles, in the order of their queries.

    Yields:
        The same pairs, in fewer tiles.
    """
    run: list[Tile] = []
    for tile in tiles:
        if run and not (_follows(run, tile) and len(run) < _most(call, tile)):
            yield _merged(run)
            run = []
        run.append(tile)
    if run:
        yield _merged(run)


def _most(call: Call, tile: Tile) -> int:
    heads, width = call.query.shape[1], call.query.shape[-1]
    if isinstance(tile.keys, Tensor):
        keys, most = tile.keys.shape[-1] * tile.unit, GATHERED_BYTES
    else:
        keys, most = sum(some.stop - some.start for some in tile.keys), TOGETHER_BYTES
    return most // max(1, heads * keys * width * call.case.dtype.itemsize)


def _follows(run: list[Tile], tile: Tile) -> bool:
    """Whether a tile is the next of a run: it meets other keys, or those moved by as many as it has queries."""
    last = run[-1]
    rows = tile.queries.stop - tile.queries.start
    if (tile.part, tile.causal) != (last.part, last.causal) or tile.queries.start != last.queries.stop:
        return False
    if rows != last.queries.stop - last.queries.start or not len(tile.keys):
        return False
    if isinstance(tile.keys, Tensor) or isinstance(last.keys, Tensor):
        if not (isinstance(tile.keys, Tensor) and isinstance(last.keys, Tensor)):
            return False
        shapes = [None if one.mask is None else one.mask.shape for one in (tile, last)]
        if tile.unit != last.unit:
            return False
        return tile.keys.shape == last.keys.shape and shapes[0] == shapes[1] and (not shapes[0] or shapes[0][0] == 1)
    if tile.mask is not last.mask or len(tile.keys) != len(last.keys):
        return False
    steps = _steps(last, tile)
    return steps is not None and (len(run) == 1 or steps == _steps(run[-2], last))


def _steps(one: Tile, other: Tile) -> tuple[int, ...] | None:
    """Return by how much each range of keys moves, or None where their lengths differ or one moves back."""
    pairs = list(zip(one.keys, other.keys, strict=True))
    if any(a.stop - a.start != b.stop - b.start or b.start < a.start for a, b in pairs):
        return None
    return tuple(b.start - a.start for a, b in pairs)


def _merged(run: list[Tile]) -> Tile:
    if len(run) == 1:
        return run[0]
    first = run[0]
    queries = slice(first.queries.start, run[-1].queries.stop)
    if isinstance(first.keys, Tensor):
        keys = torch.cat([tile.keys for tile in run if isinstance(tile.keys, Tensor)])
        masks = [tile.mask for tile in run if tile.mask is not None]
        return first._replace(queries=queries, keys=keys, mask=torch.cat(masks) if masks else None, times=len(run))
    return first._replace(queries=queries, steps=_steps(*run[:2]) or (), times=len(run))


def _band_vector(call: Call, left: float, right: float, bias: Tensor | None) -> Tensor | None:
    """Return bias and band as one vector for each head, or for all of them."""
    case = call.case
    unbounded = left >= case.kv_len - 1 and right >= case.q_len - 1
    if bias is None and unbounded:
        return None
    distances = torch.arange(1 - case.kv_len, case.q_len, device=call.query.device)
    if bias is None:
        bias = torch.zeros(1, len(distances), device=call.query.device)
    bias = bias.detach().to(torch.promote_types(case.dtype, torch.float32)).contiguous()
    return bias.masked_fill((distances < -left) | (distances > right), -torch.inf)
