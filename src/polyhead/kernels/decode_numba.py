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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.kernels import decoding, stages, team
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

PATIENCE = 1.5
"""Seconds after which a line says that something is being compiled; reading what is on disk takes less."""

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
    worker = ready(call.case.dtype)
    output, is_finite = _attend(call, worker, key, value)
    if is_finite:  # as nearly always, and the loops know
        return output, None
    bad = functools.partial(not_finite, key, value, call.case.spec)
    again = confined(lambda *seen: _attend(call, worker, *seen)[0], (key, value), bad, lambda: allowed_pairs(call))
    return again, None


def _attend(call: Call, worker: Any, key: Tensor, value: Tensor) -> tuple[Tensor, bool]:
    """Return the output, and whether what the loops gave is finite."""
    case, spec = call.case, call.case.spec
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (call.query, key, value))
    spans, seen, mask = _limits(call)
    splits = [-(-max(0, high - low) // UNIT_KEYS) for low, high in spans]
    starts = list(itertools.accumulate((spec.num_kv_heads * count for count in splits), initial=0))
    each = spec.group_size * case.q_len
    padded = each + -each % ROWS
    out = torch.empty(len(query), spec.num_kv_heads, spec.num_maps, each, spec.v_head_dim, dtype=torch.float32)
    is_finite = True
    if starts[-1]:
        rows = starts[-1] * spec.num_maps * padded
        room = torch.empty(rows * (2 + spec.v_head_dim), dtype=torch.float32)
        reach, begins, floats = _floats(spec, call.params)
        positions = call.key_positions.contiguous()
        table = np.array(
            [
                *(0, 0, starts[-1], len(query)),
                *(spec.num_kv_heads, spec.num_maps, spec.group_size, case.q_len, padded),
                *(spec.qk_head_dim, spec.v_head_dim, UNIT_KEYS, reach),
                *(query.stride(0), *grouped.query_steps(query, spec), query.stride(2)),
                *(key.stride(0), *grouped.key_steps(key, spec), key.stride(2)),
                *value.stride()[:3],
                *((0, 0, 0) if mask is None else _steps(mask)),
                0 if len(positions) == 1 else positions.shape[1],
                *begins,
                0,
                *(x.data_ptr() for x in (query, key, value, positions)),
                0 if mask is None else mask.data_ptr(),
                *(floats.data_ptr(), room.data_ptr(), room.data_ptr() + 8 * rows, out.data_ptr()),
                *starts,
                *(end for span in spans for end in span),
                *(end for span in seen for end in span),
                *call.query_positions.expand(len(query), -1).flatten().tolist(),
            ],
            dtype=np.int64,
        )
        width = spec.num_kv_heads * (spec.num_maps * spec.qk_head_dim + spec.v_head_dim) * case.dtype.itemsize
        threads = 1 + width * sum(high - low for low, high in spans) // BYTES_A_THREAD
        team.run(worker.address, table.ctypes.data, min(threads, starts[-1], torch.get_num_threads()))
        is_finite = not table[SPOILED]
    else:  # nothing is seen
        out.zero_()
    if spec.num_maps == 1:
        return out.view(len(query), spec.num_heads, case.q_len, spec.v_head_dim).to(case.dtype), is_finite
    by_query: Tensor = out.movedim(2, 1).unflatten(3, (spec.group_size, case.q_len))
    return stages.finish(call, None, stages.mixed_maps(call, by_query)).to(case.dtype), is_finite


def _floats(spec: AttentionSpec, params: Mapping[str, Tensor]) -> tuple[int, tuple[int, int, int], Tensor]:
    """Return how far a table of distances reaches, or -1; where slopes, tables and sinks begin, or -1; and all floats.

    The first two are the scale and the softcap, or 0. All but the softcap have log₂ e in them.
    """
    position, weighting = spec.position, spec.weighting
    reach, table_at, sinks_at = -1, -1, -1
    slopes_at, numbers = _fixed_floats(spec)
    floats = torch.from_numpy(numbers)
    if isinstance(position, RelativeBias):
        reach, table_at = position.max_distance, len(floats)
        table = params["bias_table"].detach()[torch.from_numpy(position.buckets())]
        floats = torch.cat([floats, (table.mT * LOG2_E).to(torch.float32).flatten()])
    if isinstance(weighting, Softmax) and weighting.sink:
        sinks_at = len(floats)
        floats = torch.cat([floats, (params["sinks"].detach() * LOG2_E).to(torch.float32)])
    return reach, (slopes_at, table_at, sinks_at), floats


@functools.lru_cache(maxsize=64)
def _fixed_floats(spec: AttentionSpec) -> tuple[int, NDArray[np.float32]]:
    """Return where slopes begin, or -1, and the floats that are not learned."""
    position, weighting = spec.position, spec.weighting
    softcap = (weighting.softcap or 0.0) if isinstance(weighting, Softmax) else 0.0
    numbers = [spec.scale * (1.0 if softcap else LOG2_E), softcap]
    if not isinstance(position, Alibi):
        return -1, np.array(numbers, dtype=np.float32)
    slopes = [slope * LOG2_E for slope in position.head_slopes(spec.num_heads)]
    return len(numbers), np.array(numbers + slopes, dtype=np.float32)


def _limits(call: Call) -> tuple[list[tuple[int, int]], list[tuple[int, int]], Tensor | None]:
    """Return from and to which key a sequence and each query of it sees, and a mask where that does not say it.

    Returns:
        For each sequence a pair, and one for each of its queries; booleans
        ``[batch or 1, num_heads or 1, q_len, kv_len]`` or None.
    """
    case, pattern, batch = call.case, call.case.spec.pattern, len(call.query)
    lengths = call.kv_lengths or (case.kv_len,) * batch
    every = [(0, length) for length in lengths]
    in_order = (case.aligned or case.ragged) and isinstance(pattern, Band)
    if case.key_mask or not in_order:
        each = [span for span in every for _ in range(case.q_len)]
        whole = pattern == Full() and not case.key_mask
        return every, each, None if whole else allowed_pairs(call).contiguous()
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
    own = [seen[row : row + case.q_len] for row in range(0, len(seen), case.q_len)]
    return [(rows[0][0], rows[-1][1]) for rows in own], seen, None


def _steps(mask: Tensor) -> tuple[int, ...]:
    """Return by how much a mask's place moves from one sequence, head and query to the next."""
    return tuple(0 if size == 1 else step for size, step in zip(mask.shape[:3], mask.stride()[:3], strict=True))


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
