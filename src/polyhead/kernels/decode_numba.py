"""A few queries against many stored keys in loops that numba compiles: each key is read once, and nothing is kept.

numba is imported when the first such call runs, and what it compiles is kept on disk. Its own threads, which do not
bear two calls at a time, are not used: `team` has the threads.
"""

from __future__ import annotations

import array
import functools
import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.kernels import compiled, decoding, stages, team
from polyhead.kernels.common import Call, Case, Kernel, allowed_pairs, beyond_flash, confined, not_finite
from polyhead.spec import Alibi, AttentionSpec, Band, Full, RelativeBias, Softmax
from polyhead.storage import grouped

UNIT_KEYS = 2048
"""Keys in a unit of work: results do not depend on how many threads share the units."""

BYTES_A_THREAD = 2**19
"""Bytes of keys and values that are worth a thread: starting one takes as long as reading so many."""

DTYPES = (torch.float32, torch.bfloat16)
EIGHT = 8
"""Numbers that the loops take at once."""

ROWS = 4
"""Rows that the loops compute together."""

SPOILED = 32
"""Where in the table the loops say that something in the output is not finite."""

LOG2_E = math.log2(math.e)


def refuse(case: Case) -> str | None:
    """Return why the loops do not compute this case, or None."""
    spec = case.spec
    if (why := decoding.refuse(case) or beyond_flash(spec)) is not None:
        return why
    if case.dtype not in DTYPES:
        return f"the loops are for float32 and bfloat16, not {str(case.dtype).removeprefix('torch.')}"
    widths = {spec.qk_head_dim, spec.v_head_dim}
    if any(width % EIGHT for width in widths):
        return f"the loops take eight numbers at once, and widths are {' and '.join(map(str, sorted(widths)))}"
    return compiled.unavailable()


def run(call: Call) -> tuple[Tensor, None]:
    """Compute in units of keys, some of them at a time; see `Kernel.run`."""
    key, value = call.key, call.value
    assert value is not None
    worker = ready(call.case.dtype)
    output, is_finite = _attend(call, worker, key, value)
    if is_finite:  # as nearly always, and the loops know
        return output, None
    bad = functools.partial(not_finite, key, value, call.case.spec)
    again = confined(lambda *seen: _attend(call, worker, *seen)[0], (key, value), bad, lambda: allowed_pairs(call))
    return again, None


class _Layout(NamedTuple):
    """What of a table follows from a spec and a number of queries, which every layer asks for at every token.

    Attributes:
        sizes: Key/value heads, maps, group, queries, rows of a map, width of keys, and of values.
        reach: How far a table of distances reaches, or -1.
        begins: Where slopes, tables and sinks begin among the floats, or -1.
        floats: Those that are not learned: the scale, the softcap or 0, and slopes.
    """

    sizes: tuple[int, ...]
    reach: int
    begins: tuple[int, int, int]
    floats: NDArray[np.float32]


@functools.lru_cache(maxsize=64)
def _layout(spec: AttentionSpec, q_len: int) -> _Layout:
    """Return what follows from a spec; all floats but the softcap have log₂ e in them."""
    position, weighting = spec.position, spec.weighting
    softcap = (weighting.softcap or 0.0) if isinstance(weighting, Softmax) else 0.0
    slopes = position.head_slopes(spec.num_heads) if isinstance(position, Alibi) else ()
    floats = [spec.scale * (1.0 if softcap else LOG2_E), softcap, *(slope * LOG2_E for slope in slopes)]
    reach = position.max_distance if isinstance(position, RelativeBias) else -1
    tables = len(floats)
    sinks = tables + (0 if reach < 0 else spec.num_heads * (2 * reach + 1))
    has_sinks = isinstance(weighting, Softmax) and weighting.sink
    rows = spec.group_size * q_len
    heads = (spec.num_kv_heads, spec.num_maps, spec.group_size, q_len, rows + -rows % ROWS)
    return _Layout(
        sizes=(*heads, spec.qk_head_dim, spec.v_head_dim),
        reach=reach,
        begins=(2 if slopes else -1, -1 if reach < 0 else tables, sinks if has_sinks else -1),
        floats=np.array(floats, dtype=np.float32),
    )


def _attend(call: Call, worker: Any, key: Tensor, value: Tensor) -> tuple[Tensor, bool]:
    """Return the output, and whether what the loops gave is finite."""
    case, spec = call.case, call.case.spec
    places = call.query_positions.tolist()
    places = places * (call.query.shape[0] // len(places))
    spans, seen, mask = _limits(call, places)
    starts = [0]
    for low, high in spans:
        starts.append(starts[-1] + spec.num_kv_heads * -(-max(0, high - low) // UNIT_KEYS))
    shape = (spec.num_heads * spec.num_maps, case.q_len, spec.v_head_dim)
    make = torch.empty if starts[-1] else torch.zeros  # else nothing is seen
    out, is_finite = make(len(places), *shape, dtype=torch.float32), True
    if starts[-1]:
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (call.query, key, value))
        plan = [*starts, *chain(*spans), *chain(*seen), *chain(*places)]
        is_finite = _fill(out, call._replace(query=query, key=key, value=value), worker, mask, plan)
    if spec.num_maps == 1:
        return out.to(case.dtype), is_finite
    by_map = out.view(len(places), spec.num_kv_heads, spec.num_maps, spec.group_size, *shape[1:]).movedim(2, 1)
    return stages.finish(call, None, stages.mixed_maps(call, by_map)).to(case.dtype), is_finite


def _fill(out: Tensor, call: Call, worker: Any, mask: Tensor | None, plan: list[int]) -> bool:
    """Compute the output, of rows that lie close, by a plan of units; return whether it is finite."""
    spec, query, key, value = call.case.spec, call.query, call.key, call.value
    assert value is not None
    layout, batch = _layout(spec, call.case.q_len), query.shape[0]
    units = plan[batch]
    rows = units * layout.sizes[1] * layout.sizes[4]
    room = torch.empty(rows * (2 + spec.v_head_dim), dtype=torch.float32)
    floats = _floats(layout, spec, call.params)
    positions = call.key_positions.contiguous()
    query_steps, key_steps, value_steps = query.stride(), key.stride(), value.stride()
    table = array.array(
        "q",
        [
            *(0, 0, units, batch, *layout.sizes, UNIT_KEYS, layout.reach),
            *(query_steps[0], *grouped.query_steps(query, spec), query_steps[2]),
            *(key_steps[0], *grouped.key_steps(key, spec), key_steps[2]),
            *value_steps[:3],
            *((0, 0, 0) if mask is None else _steps(mask)),
            *(0 if positions.shape[0] == 1 else positions.shape[1], *layout.begins, 0),
            *(query.data_ptr(), key.data_ptr(), value.data_ptr(), positions.data_ptr()),
            0 if mask is None else mask.data_ptr(),
            *(floats.data_ptr(), room.data_ptr(), room.data_ptr() + 8 * rows, out.data_ptr()),
            *plan,
        ],
    )
    ends = plan[batch + 1 : 3 * batch + 1]
    width = spec.num_kv_heads * (spec.num_maps * spec.qk_head_dim + spec.v_head_dim) * call.case.dtype.itemsize
    threads = 1 + width * (sum(ends[1::2]) - sum(ends[::2])) // BYTES_A_THREAD
    return _in_loops(worker, table, min(threads, units))


def _in_loops(worker: Any, table: array.array[int], threads: int) -> bool:
    """Run the loops over a table; return whether all that they gave is finite."""
    team.run(worker.address, table.buffer_info()[0], min(threads, torch.get_num_threads()))
    return not table[SPOILED]


def _floats(layout: _Layout, spec: AttentionSpec, params: Mapping[str, Tensor]) -> Tensor:
    """Return all floats, those of tables and sinks times log₂ e."""
    floats = [torch.from_numpy(layout.floats)]
    if isinstance(spec.position, RelativeBias):
        table = params["bias_table"].detach()[torch.from_numpy(spec.position.buckets())]
        floats.append((table.mT * LOG2_E).to(torch.float32).flatten())
    if layout.begins[2] >= 0:
        floats.append((params["sinks"].detach() * LOG2_E).to(torch.float32))
    return floats[0] if len(floats) == 1 else torch.cat(floats)


def _limits(call: Call, places: list[list[int]]) -> tuple[list[tuple[int, int]], list[tuple[int, int]], Tensor | None]:
    """Return from and to which key a sequence and each query of it sees, and a mask where that does not say it.

    Args:
        call: What is asked.
        places: The queries' positions, for each sequence.

    Returns:
        For each sequence a pair, and one for each of its queries; booleans
        ``[batch or 1, num_heads or 1, q_len, kv_len]`` or None.
    """
    case, pattern = call.case, call.case.spec.pattern
    lengths = call.kv_lengths or (case.kv_len,) * len(places)
    in_order = (case.aligned or case.ragged) and isinstance(pattern, Band)
    if case.key_mask or case.segments or not in_order:
        every = [(0, length) for length in lengths]
        each = [span for span in every for _ in range(case.q_len)]
        whole = pattern == Full() and not case.key_mask and not case.segments
        return every, each, None if whole else allowed_pairs(call).contiguous()
    assert isinstance(pattern, Band)
    spans, seen = [], []
    for own, length in zip(places, lengths, strict=True):
        rows = [_seen(pattern, place, length) for place in own]
        spans.append((rows[0][0], rows[-1][1]))
        seen += rows
    return spans, seen, None


def _seen(pattern: Band, place: int, length: int) -> tuple[int, int]:
    """Return from and to which of so many keys a query sees."""
    low = 0 if pattern.left is None else min(max(0, place - pattern.left), length)
    high = length if pattern.right is None else min(max(0, place + pattern.right + 1), length)
    return low, high


def _steps(mask: Tensor) -> tuple[int, ...]:
    """Return by how much a mask's place moves from one sequence, head and query to the next."""
    return tuple(0 if size == 1 else step for size, step in zip(mask.shape[:3], mask.stride()[:3], strict=True))


@functools.cache
def ready(dtype: torch.dtype) -> Any:
    """Return the loops for keys of a dtype, see `polyhead.kernels.decode_loops.worker`; compiled once."""
    from polyhead.kernels import decode_loops

    stored = np.uint16 if dtype == torch.bfloat16 else np.float32
    return compiled.ready(functools.partial(decode_loops.worker, stored), "decoding")


KERNEL = Kernel("numba", "a few queries against stored keys in compiled loops", refuse, run, decoding.pass_over)
