"""A pattern and a bias laid out as tiles of consecutive queries, so that no matrix of all pairs is ever made.

Where a pattern is a band, both it and a bias that goes by distance depend on ``key − query`` alone. With the queries
in reverse order the mask of a tile is then a Toeplitz matrix, ``mask[i, j] = vector[start + i + j]``, which strides
over one vector give without a matrix. Elsewhere a tile's mask is formed, for the keys that its queries can meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyhead.kernels.common import Call
from polyhead.kernels.flash import Tile
from polyhead.position import alibi, relative
from polyhead.spec import Alibi, Band, RelativeBias
from polyhead.spec.ranges import BlockState, KeyRange

MASK_ELEMENTS = 2**22
"""Most elements of a mask that is formed, 16 MiB in float32."""

BAND_ROWS = 128
"""Queries in a tile of a narrow band: fewer lose more to calls, more see more keys in vain."""

TOGETHER_BYTES = 2**23
"""What the keys of tiles that are computed together take at most; fewer calls cost less, most of all on busy cores."""

WIDE_ROWS = 1024
"""Queries in a tile where each of them sees thousands of keys."""


def distance_bias(call: Call) -> Tensor | None:
    """Return the bias of each distance ``key − query`` from ``1 − kv_len`` to ``q_len − 1``.

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
    """Return the tiles of a call whose positions are implied.

    Args:
        call: What is asked.
        heads: The query heads that the tiles are for.
        bias: Of these heads, see `distance_bias`.

    Returns:
        Tiles that hold each query once.
    """
    pattern = call.case.spec.pattern
    if isinstance(pattern, Band) and call.key_mask is None and call.segments is None:
        return together(call, band(call, pattern, bias))
    return together(call, _formed(call, heads if pattern.per_head else range(1), bias))


def band(call: Call, pattern: Band, bias: Tensor | None, *, last: int | None = None) -> Iterator[Tile]:
    """Return the tiles of a band.

    Args:
        call: What is asked.
        pattern: The band.
        bias: See `distance_bias`.
        last: The greatest distance that is seen, where it is less than the band's own; it may be negative.

    Returns:
        The tiles; their masks are views of one vector for each head.
    """
    case = call.case
    right = min(math.inf if pattern.right is None else pattern.right, math.inf if last is None else last)
    left = math.inf if pattern.left is None else pattern.left
    vector = _band_vector(call, left, right, bias)
    first = case.kv_len - case.q_len
    step = BAND_ROWS if left + right < 2 * WIDE_ROWS else WIDE_ROWS
    views: dict[Any, Tensor] = {}
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
            shape = (1, len(vector), stop - start, high - low)
            begin = case.kv_len + low - (first + stop)  # of the last query's distance from the lowest key
            view = vector.as_strided(shape, (0, vector.stride(0), 1, 1), vector.storage_offset() + begin)
            mask = views.setdefault((begin, shape), view)
        yield Tile(queries, (slice(low, high),), mask, flipped=mask is not None)


def together(call: Call, tiles: Iterator[Tile]) -> Iterator[Tile]:
    """Put tiles of one shape and one mask that follow each other together.

    Args:
        call: What is asked.
        tiles: The tiles, in the order of their queries.

    Returns:
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
    keys = tile.keys.shape[-1] if isinstance(tile.keys, Tensor) else sum(some.stop - some.start for some in tile.keys)
    return TOGETHER_BYTES // max(1, heads * keys * width * call.case.dtype.itemsize)


def _follows(run: list[Tile], tile: Tile) -> bool:
    """Whether a tile is the next of a run: it meets other keys, or those moved by as many as it has queries."""
    last = run[-1]
    rows = tile.queries.stop - tile.queries.start
    if rows != last.queries.stop - last.queries.start or not len(tile.keys):
        return False
    if isinstance(tile.keys, Tensor) or isinstance(last.keys, Tensor):
        if not (isinstance(tile.keys, Tensor) and isinstance(last.keys, Tensor)):
            return False
        shapes = [None if one.mask is None else one.mask.shape for one in (tile, last)]
        return tile.keys.shape == last.keys.shape and shapes[0] == shapes[1] and (not shapes[0] or shapes[0][0] == 1)
    if tile.mask is not last.mask or len(tile.keys) != len(last.keys):
        return False
    steps = _steps(last, tile)
    return steps is not None and (len(run) == 1 or steps == _steps(run[-2], last))


def _steps(one: Tile, other: Tile) -> tuple[int, ...] | None:
    """Return by how much each range of keys moves, or None where their lengths differ."""
    pairs = list(zip(one.keys, other.keys, strict=True))
    if any(a.stop - a.start != b.stop - b.start for a, b in pairs):
        return None
    return tuple(b.start - a.start for a, b in pairs)


def _merged(run: list[Tile]) -> Tile:
    if len(run) == 1:
        return run[0]
    first = run[0]
    queries = slice(first.queries.start, run[-1].queries.stop)
    if isinstance(first.keys, Tensor):
        keys = torch.cat([tile.keys for tile in run])
        masks = [tile.mask for tile in run if tile.mask is not None]
        return Tile(queries, keys, torch.cat(masks) if masks else None, count=len(run))
    return first._replace(queries=queries, steps=_steps(*run[:2]) or (), count=len(run))


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


# --- tiles whose masks are formed -----------------------------------------------------------------


def _formed(call: Call, heads: range, bias: Tensor | None) -> Iterator[Tile]:
    case, pattern = call.case, call.case.spec.pattern
    first = case.kv_len - case.q_len
    made: dict[Any, Tensor | None] = {}
    start = 0
    while start < case.q_len:
        stop = min(start + _rows(call, start, heads, bias), case.q_len)
        layouts = [pattern.key_ranges(first + start, first + stop, kv_len=case.kv_len, head=head) for head in heads]
        yield _formed_tile(call, slice(start, stop), heads, layouts, bias, made)
        start = stop


def _rows(call: Call, start: int, heads: range, bias: Tensor | None) -> int:
    """Return how many queries from one on a tile takes: an aligned run of those that see alike, if it is no long one."""
    case, pattern = call.case, call.case.spec.pattern
    position = case.kv_len - case.q_len + start
    rows = pattern.unit if pattern.unit >= BAND_ROWS // 4 else -(-BAND_ROWS // pattern.unit) * pattern.unit
    rows = min(rows, WIDE_ROWS)
    rows -= position % rows
    layout = pattern.key_ranges(position, position + rows, kv_len=case.kv_len)
    width = sum(some.stop - some.start for some in layout)
    num_heads = len(heads) if bias is None else len(bias)
    batch = 1 if call.key_mask is None and call.segments is None else len(call.query)
    if pattern.per_head and all(some.state is BlockState.FULL for some in layout) and batch == 1 and bias is None:
        return rows
    return max(1, min(rows, MASK_ELEMENTS // max(1, batch * num_heads * width)))


def _formed_tile(
    call: Call,
    queries: slice,
    heads: range,
    layouts: list[list[KeyRange]],
    bias: Tensor | None,
    made: dict[Any, Tensor | None],
) -> Tile:
    if not any(layouts):
        return Tile(queries, ())
    first = call.case.kv_len - call.case.q_len
    keys: tuple[slice, ...] | Tensor
    if len(layouts) == 1:
        keys = tuple(slice(start, stop) for start, stop in _joined(layouts[0]))
        numbers = torch.cat([torch.arange(some.start, some.stop) for some in keys])[None]
        there = None
    else:
        numbers, there = _padded(layouts)
        keys = numbers[None]
    name = None
    if bias is None and call.key_mask is None and call.segments is None:
        name = _name(call, (first + queries.start, first + queries.stop), layouts)
    if name is None or name not in made:
        partial = any(some.state is BlockState.PARTIAL for layout in layouts for some in layout)
        mask = _mask(call, queries, heads, numbers, there, bias, partial=partial)
        if name is None:
            return Tile(queries, keys, mask)
        made[name] = mask
    return Tile(queries, keys, made[name])


def _name(call: Call, positions: tuple[int, int], layouts: list[list[KeyRange]]) -> Any:
    """Return what two tiles of one mask have in common, or None where none may."""
    repeat = call.case.spec.pattern.repeat
    if repeat is None or positions[0] < repeat.start or len(layouts) > 1:
        return None
    shift = positions[0] - positions[0] % repeat.step
    ranges = []
    for start, stop, state in layouts[0]:
        if start < repeat.start and state is BlockState.PARTIAL:  # who sees what of it may go by the query's position
            return None
        from_start, to_start = start < repeat.start, stop <= repeat.start
        moved = (start if from_start else start - shift, stop if to_start else stop - shift)
        ranges.append((from_start, to_start, *moved, state))
    width = sum(stop - start for start, stop, _ in layouts[0])
    return positions[0] - shift, positions[1] - shift, width, tuple(ranges)


def _joined(layout: list[KeyRange]) -> list[list[int]]:
    joined: list[list[int]] = []
    for start, stop, _ in layout:
        if joined and joined[-1][1] == start:
            joined[-1][1] = stop
        else:
            joined.append([start, stop])
    return joined


def _padded(layouts: list[list[KeyRange]]) -> tuple[Tensor, Tensor | None]:
    """Return each head's keys ``[heads, most]``, and which of them are there, or None if all are.

    A head with fewer takes keys that it does not meet besides, so that no key stands twice in a row.
    """
    rows = [np.concatenate([np.arange(0)] + [np.arange(start, stop) for start, stop, _ in layout]) for layout in layouts]
    most = max(map(len, rows))
    if all(len(row) == most for row in rows):
        return torch.from_numpy(np.stack(rows)), None
    filled = [np.concatenate([row, np.setdiff1d(np.arange(most), row)[: most - len(row)]]) for row in rows]
    there = np.arange(most) < np.array([[len(row)] for row in rows])
    return torch.from_numpy(np.stack(filled)), torch.from_numpy(there)


def _mask(
    call: Call,
    queries: slice,
    heads: range,
    numbers: Tensor,
    there: Tensor | None,
    bias: Tensor | None,
    *,
    partial: bool,
) -> Tensor | None:
    """Return a tile's mask ``[batch or 1, heads or 1, queries, keys]``, or None if all of its pairs meet."""
    case, pattern, device = call.case, call.case.spec.pattern, call.query.device
    numbers = numbers.to(device)
    first = case.kv_len - case.q_len
    positions = torch.arange(first + queries.start, first + queries.stop, device=device)
    allowed = None
    if partial:
        per_head = [
            pattern.allowed(positions, keys, kv_len=case.kv_len, head=head)
            for head, keys in zip(heads, numbers, strict=True)
        ]
        allowed = torch.stack(per_head)[None]
    for more in (
        None if there is None else there.to(device)[None, :, None],
        None if call.key_mask is None else call.key_mask[:, numbers][:, :, None],
        None if call.segments is None else call.segments[:, None, queries, None] == call.segments[:, numbers][:, :, None],
    ):
        allowed = more if allowed is None else allowed if more is None else allowed & more
    if allowed is None and bias is None:
        return None
    dtype = torch.promote_types(case.dtype, torch.float32)
    added = None
    if bias is not None:
        index = numbers[:, None] - positions[None, :, None] + (case.kv_len - 1)
        added = bias.detach().to(dtype)[torch.arange(len(bias), device=device)[:, None, None], index][None]
    if allowed is None:
        return added
    shape = (*allowed.shape[:2], len(positions), numbers.shape[-1])
    if added is None:
        return torch.zeros((), dtype=dtype, device=device).masked_fill(~allowed, -torch.inf).expand(shape)
    return added.masked_fill(~allowed, -torch.inf)
