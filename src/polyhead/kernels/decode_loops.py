"""The loops of compiled decoding; importing this compiles nothing, and needs numba.

A unit of work is a stretch of the keys of one key/value head of one sequence, for all rows that meet them: the query
heads of its group, their maps and the few queries. Each unit keeps its rows' maximum, sum and weighted values, from
which the thread that is done last puts the units of a row together. Keys go through in blocks that stay in the nearest
cache, so each is read from memory once. Scores are in base 2: the factor log₂ e is in the scale, slopes, tables and
sinks that come in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numba.extending import overload

from polyhead.kernels.vectors import (
    LANES,
    LONG,
    array_at,
    float_of_bits,
    fma,
    load,
    prefetch,
    splat,
    store,
    taken,
    total,
)

BLOCK = 64
"""Keys in a block, an even number."""

ROWS = 4
"""Rows that are computed together; their number is a multiple of it."""

AHEAD = 4
"""Keys by which memory is asked for before it is read."""

FEW_ROWS = 8
"""Rows for which numbers in half precision are widened each time that they are met, and not once for all rows."""

_LINE = 16  # float32 numbers in 64 bytes
_ZERO, _HALF, _ONE, _LOWEST = np.float32(0), np.float32(0.5), np.float32(1), np.float32(-126)
_NOTHING = np.float32(-np.inf)
_LOG2_E = np.float32(1.4426950408889634)
# ln(2)ᵏ / k!, of the series of 2ˣ; at |x| ≤ ½ what is left out is 5e-9
_C1, _C2, _C3, _C4 = np.float32(0.69314718), np.float32(0.24022651), np.float32(5.5504109e-2), np.float32(9.6181291e-3)
_C5, _C6, _C7 = np.float32(1.3333558e-3), np.float32(1.5403530e-4), np.float32(1.5252734e-5)

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},  # not nnan: a NaN is to come out as one
}
_compiled = njit(**OPTIONS)


@_compiled
def _exp2(x: Any) -> Any:
    """Return 2ˣ for x ≤ 126; 0 below −126."""
    clipped = _LOWEST if x < _LOWEST else x  # noqa: FURB136  # a NaN stays one
    whole = np.floor(clipped + _HALF)
    rest = clipped - whole
    power = ((((((_C7 * rest + _C6) * rest + _C5) * rest + _C4) * rest + _C3) * rest + _C2) * rest + _C1) * rest + _ONE
    power = power * float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))
    return _ZERO if x < _LOWEST else power


def _wide(stored: Any, place: int, step: int, count: int, width: int, room: Any) -> Any:
    """Return an array with the rows of a block in float32, the first one's place in it, and the step between them."""
    raise NotImplementedError  # numba takes one of those below


@overload(_wide)
def _wide_of(stored: Any, place: int, step: int, count: int, width: int, room: Any) -> Any:
    if stored.dtype == types.float32:

        def as_it_is(stored: Any, place: int, step: int, count: int, width: int, room: Any) -> Any:
            return stored, place, step

        return as_it_is

    def widened(stored: Any, place: int, step: int, count: int, width: int, room: Any) -> Any:
        for row in range(count):  # bfloat16 is the upper half of a float32
            begin = place + row * step
            narrow, wide = stored[begin : begin + width], room[row * width : (row + 1) * width]
            for column in range(width):
                wide[column] = float_of_bits(np.int32(narrow[column]) << np.int32(16))
        return room, 0, width

    return widened


@_compiled
def _products(
    query: Any, first: int, rows: int, width: int, keys: Any, place: int, step: int, count: int, out: Any
) -> None:
    """Write ``out[row, key] = query[row] · key`` for two keys and four rows at a time."""
    for j in range(0, count, 2):
        one = place + j * step
        other = one + (step if j + 1 < count else 0)
        for e in range(0, width, _LINE):
            prefetch(keys, one + AHEAD * step + e)
            prefetch(keys, other + AHEAD * step + e)
        for row in range(first, first + rows, ROWS):
            q0 = row * width
            q1, q2, q3 = q0 + width, q0 + 2 * width, q0 + 3 * width
            a0 = a1 = a2 = a3 = splat(_ZERO)
            b0 = b1 = b2 = b3 = splat(_ZERO)
            for e in range(0, width, LANES):
                x, y = load(keys, one + e), load(keys, other + e)
                q = load(query, q0 + e)
                a0, b0 = fma(q, x, a0), fma(q, y, b0)
                q = load(query, q1 + e)
                a1, b1 = fma(q, x, a1), fma(q, y, b1)
                q = load(query, q2 + e)
                a2, b2 = fma(q, x, a2), fma(q, y, b2)
                q = load(query, q3 + e)
                a3, b3 = fma(q, x, a3), fma(q, y, b3)
            at = row * BLOCK + j
            out[at], out[at + 1] = total(a0), total(b0)
            out[at + BLOCK], out[at + BLOCK + 1] = total(a1), total(b1)
            out[at + 2 * BLOCK], out[at + 2 * BLOCK + 1] = total(a2), total(b2)
            out[at + 3 * BLOCK], out[at + 3 * BLOCK + 1] = total(a3), total(b3)


@_compiled
def _mix(
    weights: Any, rows: int, width: int, values: Any, place: int, step: int, count: int, out: Any, at: int
) -> None:
    """Add ``Σ weights[row, key] · value[key]`` to ``out``, two keys and four rows at a time."""
    for j in range(0, count, 2):
        one = place + j * step
        other = one + (step if j + 1 < count else 0)  # whose weight is 0 then
        for e in range(0, width, _LINE):
            prefetch(values, one + AHEAD * step + e)
            prefetch(values, other + AHEAD * step + e)
        for row in range(0, rows, ROWS):
            w = row * BLOCK + j
            p0, q0 = splat(weights[w]), splat(weights[w + 1])
            p1, q1 = splat(weights[w + BLOCK]), splat(weights[w + BLOCK + 1])
            p2, q2 = splat(weights[w + 2 * BLOCK]), splat(weights[w + 2 * BLOCK + 1])
            p3, q3 = splat(weights[w + 3 * BLOCK]), splat(weights[w + 3 * BLOCK + 1])
            o0 = at + row * width
            o1, o2, o3 = o0 + width, o0 + 2 * width, o0 + 3 * width
            for e in range(0, width, LANES):
                x, y = load(values, one + e), load(values, other + e)
                store(out, o0 + e, fma(q0, y, fma(p0, x, load(out, o0 + e))))
                store(out, o1 + e, fma(q1, y, fma(p1, x, load(out, o1 + e))))
                store(out, o2 + e, fma(q2, y, fma(p2, x, load(out, o2 + e))))
                store(out, o3 + e, fma(q3, y, fma(p3, x, load(out, o3 + e))))


@_compiled
def _score(
    row: Any, count: int, softcap: Any, slope: Any, floats: Any, table: int, reach: int, query: int, positions: Any
) -> None:
    """Apply softcap and bias to a row's scores, of a query and keys at some positions; softcap and slope may be 0."""
    if softcap > _ZERO:
        for j in range(count):
            grown = _exp2(min(np.float32(120), max(_LOWEST, row[j] * (np.float32(2) * _LOG2_E / softcap))))
            row[j] = softcap * _LOG2_E * (_ONE - np.float32(2) / (grown + _ONE))
    if slope != _ZERO:
        for j in range(count):
            row[j] -= slope * np.float32(abs(positions[j] - query))
    if reach >= 0:
        for j in range(count):
            row[j] += floats[table + min(reach, max(-reach, positions[j] - query)) + reach]


@_compiled
def _hide(row: Any, count: int, low: int, high: int, masked: bool, mask: Any, at: int) -> None:
    """Leave a row nothing of the keys before ``low``, from ``high`` on, and those that a mask hides."""
    for j in range(min(low, count)):
        row[j] = _NOTHING
    for j in range(max(high, 0), count):
        row[j] = _NOTHING
    if masked:
        for j in range(count):
            if mask[at + j] == 0:
                row[j] = _NOTHING


@_compiled
def _weigh(row: Any, count: int, state: Any, at: int, out: Any) -> None:
    """Turn a row's scores into weights relative to its maximum so far, and scale what there is of it to match."""
    before, most = state[at], state[at]
    for j in range(count):
        most = max(most, row[j])
    added = _ZERO
    if most == _NOTHING:
        for j in range(count):  # NaN is more than nothing, and no maximum
            row[j] = _ZERO if row[j] == _NOTHING else row[j]
            added += row[j]
    else:
        if most > before:
            shrunk = _exp2(before - most)
            state[at] = most
            state[at + 1] *= shrunk
            for e in range(len(out)):
                out[e] *= shrunk
        for j in range(count):
            weight = _exp2(row[j] - most)
            row[j] = weight
            added += weight
    state[at + 1] += added
    if count % 2:
        row[count] = _ZERO


ARRAY_NAMES = ("query", "key", "value", "key_positions", "mask", "floats", "state", "parts", "out")
"""The arrays that a worker is given."""

COUNTER, DONE, UNITS, BATCH, SIZES, QUERY, KEY, VALUE, MASK, POSITIONS, FLOATS, SPOILED, ARRAYS, PLAN = (
    *(0, 1, 2, 3, 4, 13, 18, 22, 25, 28, 29, 32, 33),
    33 + len(ARRAY_NAMES),
)
"""Where in its table a worker finds what it needs.

The next unit, how many are done and how many there are; the number of sequences; nine sizes (kv_heads, maps, group,
q_len, rows of a map, width, v_width, keys in a unit, reach); strides of queries (batch, kv_head, map, group, token),
keys (batch, kv_head, map, token), values (batch, kv_head, token), the mask (batch, head, query) and key positions
(batch); where slopes, tables and sinks begin among the floats, or -1, after the scale and the softcap; 1 once something
in the output is not finite; addresses of `ARRAY_NAMES`, or 0 for no mask; each sequence's first unit, ``[batch + 1]``;
the keys that some query of a sequence sees, ``[batch, 2]``; those that each of them sees, ``[batch, q_len, 2]``; and
positions of queries, ``[batch, q_len]``."""


@_compiled
def _take(query: Any, place: int, table: Any, factor: Any, rows: Any) -> None:
    """Copy the queries of a key/value head as scaled rows; those that fill up a map's stay 0."""
    maps, group, q_len = table[SIZES + 1], table[SIZES + 2], table[SIZES + 3]
    padded, width, scale = table[SIZES + 4], table[SIZES + 5], splat(factor)
    for m in range(maps):
        for g in range(group):
            for i in range(q_len):
                begin = place + m * table[QUERY + 2] + g * table[QUERY + 3] + i * table[QUERY + 4]
                at = (m * padded + g * q_len + i) * width
                for e in range(0, width, LANES):
                    store(rows, at + e, fma(load(query, begin + e), scale, splat(_ZERO)))


@_compiled
def _compute(unit: int, sequence: int, table: Any, given: Any, results: Any, room: Any) -> None:
    """Compute a unit of a sequence."""
    query, key, value, key_positions, mask, floats = given
    state, parts = results
    query_rows, scores, key_room, value_room = room
    maps, padded, width, v_width = table[SIZES + 1], table[SIZES + 4], table[SIZES + 5], table[SIZES + 6]
    group, q_len, reach, rows = table[SIZES + 2], table[SIZES + 3], table[SIZES + 8], maps * padded
    spans = PLAN + table[BATCH] + 1
    seen, query_positions = spans + 2 * table[BATCH], spans + 2 * table[BATCH] * (1 + q_len)
    splits = (table[PLAN + sequence + 1] - table[PLAN + sequence]) // table[SIZES]
    head, part = (unit - table[PLAN + sequence]) // splits, (unit - table[PLAN + sequence]) % splits
    low = table[spans + 2 * sequence] + part * table[SIZES + 7]
    high = min(table[spans + 2 * sequence + 1], low + table[SIZES + 7])
    for row in range(unit * rows, (unit + 1) * rows):
        state[2 * row], state[2 * row + 1] = _NOTHING, _ZERO
        for e in range(row * v_width, (row + 1) * v_width):
            parts[e] = _ZERO
    _take(query, sequence * table[QUERY] + head * table[QUERY + 1], table, floats[0], query_rows)
    for block in range(low, high, BLOCK):
        count = min(BLOCK, high - block)
        for m in range(maps):
            place = sequence * table[KEY] + head * table[KEY + 1] + m * table[KEY + 2] + block * table[KEY + 3]
            if padded <= FEW_ROWS:
                _products(query_rows, m * padded, padded, width, key, place, table[KEY + 3], count, scores)
            else:
                keys, begin, step = _wide(key, place, table[KEY + 3], count, width, key_room)
                _products(query_rows, m * padded, padded, width, keys, begin, step, count, scores)
        place = sequence * table[POSITIONS] + block
        positions = key_positions[place : place + count]
        for number in range(rows):
            row, place = scores[number * BLOCK : (number + 1) * BLOCK], number % padded
            if place < group * q_len:
                own, i = head * group + place // q_len, place % q_len
                about = sequence * q_len + i
                slope = floats[table[FLOATS] + own] if table[FLOATS] >= 0 else _ZERO
                distances, asked = table[FLOATS + 1] + own * (2 * reach + 1), table[query_positions + about]
                _score(row, count, floats[1], slope, floats, distances, reach, asked, positions)
                at = sequence * table[MASK] + own * table[MASK + 1] + i * table[MASK + 2] + block
                begin, end = table[seen + 2 * about] - block, table[seen + 2 * about + 1] - block
                _hide(row, count, begin, end, table[ARRAYS + 4] != 0, mask, at)
            at = (unit * rows + number) * v_width
            _weigh(row, count, state, 2 * (unit * rows + number), parts[at : at + v_width])
        place, at = sequence * table[VALUE] + head * table[VALUE + 1] + block * table[VALUE + 2], unit * rows * v_width
        if rows <= FEW_ROWS:
            _mix(scores, rows, v_width, value, place, table[VALUE + 2], count, parts, at)
        else:
            values, begin, step = _wide(value, place, table[VALUE + 2], count, v_width, value_room)
            _mix(scores, rows, v_width, values, begin, step, count, parts, at)


@_compiled
def _merge(table: Any, floats: Any, state: Any, parts: Any, out: Any) -> None:
    """Write ``out [batch, kv_heads, maps, group · q_len, v_width]`` from what the units kept; nothing seen gives 0."""
    kv_heads, group, q_len, v_width = table[SIZES], table[SIZES + 2], table[SIZES + 3], table[SIZES + 6]
    rows, each, sinks, at = table[SIZES + 1] * table[SIZES + 4], group * q_len, table[FLOATS + 2], 0
    for sequence in range(table[BATCH]):
        splits = (table[PLAN + sequence + 1] - table[PLAN + sequence]) // kv_heads
        for head in range(kv_heads):
            for number in range(table[SIZES + 1] * each):
                first = (
                    (table[PLAN + sequence] + head * splits) * rows + number // each * table[SIZES + 4] + number % each
                )
                sink = floats[sinks + head * group + number % each // q_len] if sinks >= 0 else _NOTHING
                most = sink
                for part in range(first, first + splits * rows, rows):
                    most = max(most, state[2 * part])
                divisor = _ZERO if sink == _NOTHING else _exp2(sink - most)
                for e in range(v_width):
                    out[at + e] = _ZERO
                for part in range(first, first + splits * rows, rows):
                    share = _ONE if state[2 * part] == _NOTHING else _exp2(state[2 * part] - most)
                    divisor += share * state[2 * part + 1]
                    for e in range(v_width):
                        out[at + e] += share * parts[part * v_width + e]
                check = _ZERO
                for e in range(v_width):
                    out[at + e] = out[at + e] / divisor if divisor != _ZERO else out[at + e]
                    check += _ZERO * out[at + e]
                if check != _ZERO:
                    table[SPOILED] = 1
                at += v_width


def worker(dtype: Any, *, kept: bool) -> Any:
    """Compile what a thread runs, which is given the address of a table: units until none is left.

    Args:
        dtype: What queries, keys and values are to numba: ``float32``, or ``uint16`` for the bits of bfloat16.
        kept: Whether what is compiled is kept on disk, and looked for there.

    Returns:
        numba's function, whose ``address`` is to be called.
    """

    def work(pointer: Any) -> None:
        table = carray(pointer, (LONG,), np.int64)
        first = np.int64(ARRAYS)  # a variable: for each constant numba would compile `array_at` anew
        query, key = array_at(table, first, dtype), array_at(table, first + 1, dtype)
        value, key_positions = array_at(table, first + 2, dtype), array_at(table, first + 3, np.int64)
        mask, floats = array_at(table, first + 4, np.uint8), array_at(table, first + 5, np.float32)
        state, parts = array_at(table, first + 6, np.float32), array_at(table, first + 7, np.float32)
        given, results = (query, key, value, key_positions, mask, floats), (state, parts)
        rows = table[SIZES + 1] * table[SIZES + 4]
        room = (
            np.zeros(rows * table[SIZES + 5], np.float32),
            np.zeros(rows * BLOCK, np.float32),
            np.empty(BLOCK * table[SIZES + 5], np.float32),
            np.empty(BLOCK * table[SIZES + 6], np.float32),
        )
        sequence, done = 0, 0
        unit = taken(table, COUNTER)
        while unit < table[UNITS]:
            while unit >= table[PLAN + sequence + 1]:
                sequence += 1
            _compute(unit, sequence, table, given, results, room)
            done = taken(table, DONE) + 1  # all others have been written when the last one counts itself
            unit = taken(table, COUNTER)
        if done == table[UNITS]:
            _merge(table, floats, state, parts, array_at(table, first + 8, np.float32))

    return cfunc(types.void(types.voidptr), cache=kept, error_model="numpy")(work)
