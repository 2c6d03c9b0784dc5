"""A few queries against many stored keys in loops that numba compiles: each key is read once, and nothing is kept.

numba is imported when the first such call runs, and what it compiles is kept on disk. Its own threads, which do not
bear two calls at a time, are not used: `team` has the threads.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polyhead.kernels import decoding, stages, team
from polyhead.kernels.common import Call, Case, Kernel, allowed_pairs, beyond_flash, compute_dtype, confined, not_finite
from polyhead.spec import Alibi, AttentionSpec, Band, Full, RelativeBias, Softmax
from polyhead.storage import grouped

UNIT_KEYS = 2048
"""Keys in a unit of work: results do not depend on how many threads share the units."""

BYTES_A_THREAD = 2**19
"""Bytes of keys and values that are worth a thread: starting one takes as long as reading so many."""

DTYPES = (torch.float32, torch.bfloat16)
EIGHT = 8
"""Numbers that the loops take at once."""

PATIENCE = 0.5
"""Seconds after which a line says that something is being compiled."""

ROWS = 4
"""Rows that the loops compute together."""

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
    return unavailable()


@functools.cache
def unavailable() -> str | None:
    """Return why nothing can be compiled here, or None; numba is not imported for it."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install 'polyhead[numba]'"
    if not any(map(_is_writable, _cache_directories())):
        return "numba has no directory to keep what it compiles; set NUMBA_CACHE_DIR to one that can be written to"
    return None


def _cache_directories() -> Iterator[Path]:
    """Yield where numba keeps what it compiles, the preferred first."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given)
        return
    yield Path(__file__).parent / "__pycache__"
    yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _is_writable(directory: Path) -> bool:
    """Whether a directory can be written to, or made."""
    there = next(one for one in (directory, *directory.absolute().parents) if one.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def run(call: Call) -> tuple[Tensor, None]:
    """Compute in units of keys, some of them at a time; see `Kernel.run`."""
    key, value = call.key, call.value
    assert value is not None
    compute = functools.partial(_attend, call, ready(call.case.dtype))
    bad = functools.partial(not_finite, key, value, call.case.spec)
    return confined(compute, (key, value), bad, lambda: allowed_pairs(call)), None


def _attend(call: Call, worker: Any, key: Tensor, value: Tensor) -> Tensor:
    spec, itemsize = call.case.spec, call.case.dtype.itemsize
    key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (key, value))
    spans, seen, mask = _limits(call)
    splits = [-(-max(0, high - low) // UNIT_KEYS) for low, high in spans]
    starts = list(itertools.accumulate((spec.num_kv_heads * count for count in splits), initial=0))
    query = _rows(call)
    rows = query.shape[2]
    state = torch.empty(starts[-1], rows, 2, dtype=torch.float32)
    parts = torch.empty(starts[-1], rows, spec.v_head_dim, dtype=torch.float32)
    reach, biases = _biases(call)
    key_positions = call.key_positions.contiguous()
    arrays = (
        *(*biases, query, call.query_positions.expand(len(query), -1).contiguous(), key_positions),
        *(torch.tensor(starts), torch.tensor(spans), seen, _NONE if mask is None else mask, state, parts, key, value),
    )
    by_map = grouped.keys_by_map(key, spec)
    table = torch.tensor(
        [
            *(0, starts[-1]),
            *(spec.num_kv_heads, spec.num_maps, spec.group_size, call.case.q_len, rows // spec.num_maps),
            *(spec.qk_head_dim, spec.v_head_dim, UNIT_KEYS, reach),
            *(0, by_map.stride(0), by_map.stride(2), by_map.stride(1), by_map.stride(3)),
            *(0, *value.stride()[:3]),
            *((0, 0, 0) if mask is None else _steps(mask)),
            0 if len(key_positions) == 1 else key_positions.shape[1],
            *itertools.chain.from_iterable((array.data_ptr(), array.numel()) for array in arrays),
        ]
    )
    width = spec.num_kv_heads * (spec.num_maps * spec.qk_head_dim + spec.v_head_dim)
    threads = 1 + itemsize * width * sum(high - low for low, high in spans) // BYTES_A_THREAD
    team.run(worker.address, table.data_ptr(), max(1, min(threads, starts[-1], torch.get_num_threads())))
    found = _merged(call, starts, state, parts).unflatten(2, (spec.num_maps, -1))
    real = found[:, :, :, : spec.group_size * call.case.q_len]
    by_query: Tensor = real.movedim(2, 1).unflatten(3, (spec.group_size, call.case.q_len))
    return stages.finish(call, None, stages.mixed_maps(call, by_query)).to(call.case.dtype)


def _rows(call: Call) -> Tensor:
    """Return the queries as rows for each key/value head, filled up to whole fours: ``[batch, kv_heads, rows, width]``.

    They have the scale and log₂ e in them, but for this where a cap comes between.
    """
    spec = call.case.spec
    factor = spec.scale * (1.0 if _softcap(spec) else LOG2_E)
    query = grouped.by_group(call.query.to(compute_dtype(call.case.dtype)), spec) * factor
    rows = query.movedim(1, 2).flatten(3, 4)
    padded: Tensor = functional.pad(rows, (0, 0, 0, -rows.shape[3] % ROWS))
    return padded.flatten(2, 3)


def _softcap(spec: AttentionSpec) -> float:
    return (spec.weighting.softcap or 0.0) if isinstance(spec.weighting, Softmax) else 0.0


def _biases(call: Call) -> tuple[int, tuple[Tensor, Tensor, Tensor]]:
    """Return how far a table reaches, or -1; and the softcap, ALiBi's slopes and each head's table, or zeros."""
    spec, position = call.case.spec, call.case.spec.position
    softcap = torch.tensor([_softcap(spec)], dtype=torch.float32)
    slopes = torch.zeros(spec.num_heads, dtype=torch.float32)
    if isinstance(position, Alibi):
        slopes = torch.tensor(position.head_slopes(spec.num_heads), dtype=torch.float32) * LOG2_E
    if not isinstance(position, RelativeBias):
        return -1, (softcap, slopes, slopes)
    table = call.params["bias_table"].detach()[torch.from_numpy(position.buckets())]
    return position.max_distance, (softcap, slopes, (table.mT * LOG2_E).to(torch.float32).contiguous())


def _limits(call: Call) -> tuple[list[tuple[int, int]], Tensor, Tensor | None]:
    """Return from and to which key a sequence and each query of it sees, and a mask where that does not say it.

    Returns:
        For each sequence a pair; ``[batch, q_len, 2]``; booleans ``[batch or 1, num_heads or 1, q_len, kv_len]`` or
        None.
    """
    case, pattern, batch = call.case, call.case.spec.pattern, len(call.query)
    lengths = call.kv_lengths or (case.kv_len,) * batch
    every = [(0, length) for length in lengths]
    in_order = (case.aligned or case.ragged) and isinstance(pattern, Band)
    if case.key_mask or not (in_order or pattern == Full()):
        return every, _seen(every, case.q_len), allowed_pairs(call).contiguous()
    if pattern == Full():
        return every, _seen(every, case.q_len), None
    assert isinstance(pattern, Band)
    firsts = call.query_positions[:, 0].tolist()
    seen = [
        (
            0 if pattern.left is None else min(max(0, place - pattern.left), length),
            length if pattern.right is None else min(max(0, place + pattern.right + 1), length),
        )
        for first, length in zip(firsts * (batch // len(firsts)), lengths, strict=True)
        for place in range(first, first + case.q_len)
    ]
    ends = [seen[row : row + case.q_len] for row in range(0, len(seen), case.q_len)]
    return [(own[0][0], own[-1][1]) for own in ends], torch.tensor(seen), None


def _seen(spans: list[tuple[int, int]], q_len: int) -> Tensor:
    return torch.tensor(spans).repeat_interleave(q_len, dim=0)


def _steps(mask: Tensor) -> tuple[int, ...]:
    """Return by how much a mask's place moves from one sequence, head and query to the next."""
    return tuple(0 if size == 1 else step for size, step in zip(mask.shape[:3], mask.stride()[:3], strict=True))


def _merged(call: Call, starts: list[int], state: Tensor, parts: Tensor) -> Tensor:
    """Return the rows ``[batch, kv_heads, rows, v_head_dim]`` that all units of each come to; zeros if nothing is seen.

    Args:
        call: What is asked.
        starts: Each sequence's first unit.
        state: ``[units, rows, 2]``: maximum and sum.
        parts: ``[units, rows, v_head_dim]``.

    Returns:
        The rows, those that fill up among them.
    """
    spec = call.case.spec
    sinks = torch.full((spec.num_kv_heads, parts.shape[1]), -torch.inf)
    if isinstance(spec.weighting, Softmax) and spec.weighting.sink:
        own = call.params["sinks"].detach().float() * LOG2_E
        by_row = own.repeat_interleave(call.case.q_len).view(spec.num_kv_heads, -1)
        sinks[:, : by_row.shape[1]] = by_row
    even = len({stop - start for start, stop in itertools.pairwise(starts)}) == 1
    ends = [(starts[0], starts[-1])] if even else list(itertools.pairwise(starts))
    merged = []
    for first, last in ends:
        sequences = len(starts) - 1 if even else 1
        shape = (sequences, spec.num_kv_heads, (last - first) // (sequences * spec.num_kv_heads), parts.shape[1])
        most, total = (state[first:last, :, n].view(shape) for n in (0, 1))
        top = torch.maximum(most.amax(dim=2), sinks) if shape[2] else sinks.expand(sequences, -1, -1)
        top = top.masked_fill(top == -torch.inf, 0.0)
        share = torch.exp2(most - top[:, :, None])
        divisor = (share * total).sum(dim=2) + torch.exp2(sinks - top)
        mixed = (share[..., None] * parts[first:last].view(*shape, -1)).sum(dim=2)
        merged.append(mixed / divisor.masked_fill(divisor == 0, 1.0)[..., None])
    return merged[0] if len(merged) == 1 else torch.cat(merged)


_NONE = torch.empty(0, dtype=torch.bool)


@functools.cache
def ready(dtype: torch.dtype) -> Any:
    """Return the loops compiled for keys of a dtype: from disk, or now, with a line on stderr if that takes a while.

    Args:
        dtype: Dtype of keys and values.

    Returns:
        numba's function; see `polyhead.kernels.decode_loops.worker`.

    Warns:
        RuntimeWarning: If what was kept on disk cannot be read, or nothing can be kept; it is compiled all the same.
    """
    from polyhead.kernels import decode_loops

    stored = np.uint16 if dtype == torch.bfloat16 else np.float32
    with _announced():
        try:
            return decode_loops.worker(stored, kept=True)
        except Exception as error:  # noqa: BLE001  # pickle, zlib, OSError, ...: a broken file can raise anything
            where = next(_cache_directories())
            warnings.warn(
                f"numba cannot keep compiled decoding in {where} ({error}), so each process compiles it anew; "
                "empty that directory, or set NUMBA_CACHE_DIR to another",
                RuntimeWarning,
                stacklevel=2,
            )
            return decode_loops.worker(stored, kept=False)


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """Say on stderr that something is being compiled, if that takes a while."""
    text = "polyhead: compiling decoding with numba, once for this machine ...\n"
    timer = threading.Timer(PATIENCE, sys.stderr.write, args=(text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


KERNEL = Kernel("numba", "a few queries against stored keys in compiled loops", refuse, run, decoding.pass_over)
