"""Tiles whose masks are formed, for the keys that their queries can meet: where no vector of distances is the mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.kernels.common import Call, allowed_pairs
from polyhead.kernels.flash import Part, Tile, joins_exactly
from polyhead.position import alibi, relative
from polyhead.spec import Alibi, Pattern, RelativeBias
from polyhead.spec.ranges import BlockState, KeyRange

Keys = Tensor | list[slice | Tensor]
"""Numbers of keys ``[heads, keys]``; or one part of the keys, for all heads."""

MASK_ELEMENTS = 2**22
"""Most elements of a mask that is formed, 16 MiB in float32."""

NUMBERED_KEYS = 2**20
"""Keys that are numbered at once, of all heads; 8 MiB."""

ROWS = 128
"""Queries in a tile at least, if they are treated alike in runs of fewer."""

MOST_ROWS = 768
"""Queries in a tile at most."""


def formed(call: Call, heads: range) -> Iterator[Tile]:
    """Yield tiles of a call.

    Args:
        call: What is asked.
        heads: The query heads that the tiles are for.

    Yields:
        Tiles in the order of their queries; after them those that hold other keys of the same queries.
    """
    if (units := _units(call)) is not None:
        yield from _by_unit(call, heads, units)
        return
    made: dict[Any, Tensor | None] = {}
    rest: list[Tile] = []
    start = 0
    while start < call.case.q_len:
        stop, layout = _stop(call, start, heads)
        tile, *more = _tiles(call, slice(start, stop), heads, made, layout)
        yield tile
        rest.extend(more)
        start = stop
    yield from rest


def _units(call: Call) -> Pattern | None:
    """Return the pattern of whole runs of tokens, where heads differ and each run of queries sees few, and no part."""
    case, pattern = call.case, call.case.spec.pattern
    size = pattern.unit
    if not _apart(call) or size < ROWS // 4 or (case.kv_len - case.q_len) % size:
        return None
    units = pattern.in_units(size, kv_len=case.kv_len)
    return None if units is None or units.degree is None else units


def _by_unit(call: Call, heads: range, units: Pattern) -> Iterator[Tile]:
    case, size = call.case, call.case.spec.pattern.unit
    num_units = -(-case.kv_len // size)
    first = (case.kv_len - case.q_len) // size
    at_once = max(1, NUMBERED_KEYS // (len(heads) * (units.degree or 1) * size))
    for start in range(first, num_units, at_once):
        stop = min(start + at_once, num_units)
        lists = [units.neighbours(start, stop, kv_len=num_units, head=head) for head in heads]
        width = max(own.keys.shape[1] for own in lists)
        runs = np.stack(
            [np.pad(own.keys, ((0, 0), (0, width - own.keys.shape[1])), constant_values=-1) for own in lists], axis=1
        )
        every = np.any([own.every for own in lists], axis=0)  # any number of keys is not on a list
        numbers, there = _numbered(runs, size, case.kv_len)
        all_there, some_there = there.all(dim=(1, 2)).tolist(), there.any(dim=(1, 2)).tolist()
        chosen = torch.from_numpy(np.maximum(runs, 0))
        for index, unit in enumerate(range(start - first, stop - first)):
            rows = slice(unit * size, min((unit + 1) * size, case.q_len))
            if every[index]:
                yield from _tiles(call, rows, heads, {}, None)
            elif some_there[index]:
                met = None if all_there[index] else there[index]
                mask = _mask(call, rows, heads, numbers[index], met, partial=False)
                yield Tile(rows, chosen[index : index + 1], mask, unit=size)
            else:
                yield Tile(rows, ())


def _numbered(runs: NDArray[np.int64], size: int, kv_len: int) -> tuple[Tensor, Tensor]:
    """Return the keys of some runs ``[units, heads, runs]`` as ``[units, heads, keys]``, and which of them are there.

    -1 is no run, and the last one may be cut short.
    """
    numbers = np.maximum(runs, 0)[..., None] * size + np.arange(size)
    there = (runs >= 0)[..., None] & (numbers < kv_len)
    flat = (*runs.shape[:2], -1)
    return torch.from_numpy(np.minimum(numbers, kv_len - 1).reshape(flat)), torch.from_numpy(there.reshape(flat))


def _tiles(
    call: Call, queries: slice, heads: range, made: dict[Any, Tensor | None], layout: list[KeyRange] | None
) -> list[Tile]:
    if _apart(call):
        layouts = [_layout(call, queries, head) for head in heads]
        if all(own == layouts[0] for own in layouts):
            layouts = layouts[:1]
    else:
        layouts = [_layout(call, queries, 0) if layout is None else layout]
    if not any(layouts):
        return [Tile(queries, ())]
    if len(layouts) > 1:
        numbers, there = _padded(layouts)
        partial = any(some.state is BlockState.PARTIAL for layout in layouts for some in layout)
        return [Tile(queries, numbers[None], _mask(call, queries, heads, numbers, there, partial=partial))]
    name = _name(call, queries, layouts[0])
    tiles = []
    groups = _groups(layouts[0]) if joins_exactly(call.case) else [layouts[0]]
    for index, group in enumerate(groups):
        keys = tuple(slice(start, stop) for start, stop in _joined(group))
        if name is None or (index, name) not in made:
            places = keys[0] if len(keys) == 1 else torch.cat([torch.arange(k.start, k.stop) for k in keys])
            partial = any(some.state is BlockState.PARTIAL for some in group)
            made[index, name] = _mask(call, queries, heads, [places], None, partial=partial)
        part: Part = "whole" if len(groups) == 1 else "more" if index else "first"
        tiles.append(Tile(queries, keys, made[index, name], part=part))
    return tiles


def _apart(call: Call) -> bool:
    """Whether heads have keys of their own; where positions are given, only their masks differ."""
    return call.case.spec.pattern.per_head and call.case.aligned


def _layout(call: Call, queries: slice, head: int) -> list[KeyRange]:
    case = call.case
    if not case.aligned:
        return [KeyRange(0, case.kv_len, BlockState.PARTIAL)]
    first = case.kv_len - case.q_len
    return case.spec.pattern.key_ranges(first + queries.start, first + queries.stop, kv_len=case.kv_len, head=head)


def _stop(call: Call, start: int, heads: range) -> tuple[int, list[KeyRange] | None]:
    """Return where a tile ends: with an aligned run of queries that see alike, unless its mask would be too large.

    Returns:
        One past its last query, and its layout for the first head, if it was looked at.
    """
    case, pattern, rows = call.case, call.case.spec.pattern, MOST_ROWS
    if case.aligned:
        rows = min(pattern.unit if pattern.unit >= ROWS // 4 else -(-ROWS // pattern.unit) * pattern.unit, rows)
        rows -= (case.kv_len - case.q_len + start) % rows
    stop = min(start + rows, case.q_len)
    layout = _layout(call, slice(start, stop), 0)
    has_bias = isinstance(case.spec.position, Alibi | RelativeBias)
    is_even = case.aligned and not (case.key_mask or case.segments)
    if is_even and not has_bias and all(some.state is BlockState.FULL for some in layout):
        return stop, layout
    masks = (1 if is_even else len(call.query)) * (len(heads) if has_bias or pattern.per_head else 1)
    most = MASK_ELEMENTS // max(1, masks * sum(some.stop - some.start for some in layout))
    return (stop, layout) if stop - start <= most else (start + max(1, most), None)


def _groups(layout: list[KeyRange]) -> list[list[KeyRange]]:
    """Take the longest run of keys apart, if it is most of them: it need not be copied to lie beside the others."""
    runs = _joined(layout)
    start, stop = max(runs, key=lambda run: run[1] - run[0])
    total = sum(run[1] - run[0] for run in runs)
    if len(runs) == 1 or 2 * (stop - start) < total:
        return [layout]
    longest = [some for some in layout if start <= some.start < stop]
    return [longest, [some for some in layout if some not in longest]]


def _name(call: Call, queries: slice, layout: list[KeyRange]) -> Any:
    """Return what two tiles of one mask have in common, or None where none may."""
    case, repeat = call.case, call.case.spec.pattern.repeat
    if repeat is None or not case.aligned or case.key_mask or case.segments:
        return None
    if isinstance(case.spec.position, Alibi | RelativeBias):
        return None
    positions = [case.kv_len - case.q_len + place for place in (queries.start, queries.stop)]
    if positions[0] < repeat.start:
        return None
    shift = positions[0] - positions[0] % repeat.step
    ranges = []
    for start, stop, state in layout:
        if start < repeat.start and state is BlockState.PARTIAL:  # who sees what of it may go by the query's position
            return None
        from_start, to_start = start < repeat.start, stop <= repeat.start
        moved = (start if from_start else start - shift, stop if to_start else stop - shift)
        ranges.append((from_start, to_start, *moved, state))
    width = sum(stop - start for start, stop, _ in layout)
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
    rows = [
        np.concatenate([np.arange(0)] + [np.arange(start, stop) for start, stop, _ in layout]) for layout in layouts
    ]
    most = max(map(len, rows))
    if all(len(row) == most for row in rows):
        return torch.from_numpy(np.stack(rows)), None
    filled = [np.concatenate([row, np.setdiff1d(np.arange(most), row)[: most - len(row)]]) for row in rows]
    there = np.arange(most) < np.array([[len(row)] for row in rows])
    return torch.from_numpy(np.stack(filled)), torch.from_numpy(there)


def _mask(
    call: Call, queries: slice, heads: range, keys: Keys, there: Tensor | None, *, partial: bool
) -> Tensor | None:
    """Return a tile's mask ``[batch or 1, heads or 1, queries or 1, keys]``, or None if all of its pairs meet."""
    case, spec = call.case, call.case.spec
    dtype = torch.promote_types(case.dtype, torch.float32)
    allowed = None if there is None else there.to(call.query.device)[None, :, None]
    if partial or case.key_mask or case.segments:
        whose = heads if spec.pattern.per_head else range(1)
        each = [keys[index % len(keys)] for index in range(len(whose))]
        pairs = [allowed_pairs(call, queries, some, head) for head, some in zip(whose, each, strict=True)]
        met = pairs[0] if len(pairs) == 1 else torch.cat(pairs, dim=1)
        allowed = met if allowed is None else allowed & met
    if isinstance(spec.position, Alibi | RelativeBias):
        mask = _bias(call, queries, heads, keys).to(dtype)
        return mask if allowed is None else mask.masked_fill(~allowed, -torch.inf)
    if allowed is None:
        return None
    return torch.zeros((), dtype=dtype, device=call.query.device).masked_fill(~allowed, -torch.inf)


def _bias(call: Call, queries: slice, heads: range, keys: Keys) -> Tensor:
    """Return the bias of some pairs, ``[batch or 1, heads, queries, keys]``."""
    spec, query_positions = call.case.spec, call.query_positions[:, queries]
    dtype = torch.promote_types(call.case.dtype, torch.float32)
    found: list[Tensor] = []
    for some in keys:
        own = heads if len(keys) == 1 else range(heads[len(found)], heads[len(found)] + 1)
        key_positions = call.key_positions[:, some]
        if isinstance(spec.position, Alibi):
            bias = alibi.bias(spec, query_positions, key_positions, dtype)
        else:
            bias = relative.bias(
                call.params["bias_table"].detach(), relative.entries(spec, query_positions, key_positions)
            )
        found.append(bias[:, own.start : own.stop])
    return torch.cat(found, dim=1)
