"""The loops of a single token's projections; importing this compiles nothing, and needs numba.

Several matrices meet one row. Threads take stretches of their rows one after the other, and each output is computed by
one thread in an order that does not depend on how many there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types

from polyhead.kernels.vectors import LANES, LONG, array_at, fma, load, splat, taken, total

STRETCH = 32
"""Rows of a matrix that a thread takes at a time, a multiple of `ROWS`."""

ROWS = 4
"""Rows of a matrix that are computed together."""

NEXT, MATRICES, WIDTH, INPUT, PLAN = 0, 1, 2, 3, 4
"""Where in its table a worker finds what it needs.

The next stretch; the number of matrices; their width, a multiple of `LANES`; the row's address; and for each matrix its
address, the step between its rows, how many they are, and where its outputs go.
"""

_ZERO = np.float32(0)


@njit(nogil=True, error_model="numpy")
def _multiply(matrix: Any, first: int, stop: int, step: int, row: Any, width: int, out: Any) -> None:
    """Write ``out[n] = matrix[n] · row`` for some of a matrix's rows; a row past the last is the last one again."""
    for n in range(first, stop, ROWS):
        n1, n2, n3 = min(n + 1, stop - 1), min(n + 2, stop - 1), min(n + 3, stop - 1)
        w0, w1, w2, w3 = n * step, n1 * step, n2 * step, n3 * step
        a0 = a1 = a2 = a3 = splat(_ZERO)
        for e in range(0, width, LANES):
            x = load(row, e)
            a0, a1 = fma(x, load(matrix, w0 + e), a0), fma(x, load(matrix, w1 + e), a1)
            a2, a3 = fma(x, load(matrix, w2 + e), a2), fma(x, load(matrix, w3 + e), a3)
        out[n], out[n1], out[n2], out[n3] = total(a0), total(a1), total(a2), total(a3)


def worker(*, kept: bool) -> Any:
    """Compile what a thread runs, which is given the address of a table: stretches until none is left.

    Args:
        kept: Whether what is compiled is kept on disk, and looked for there.

    Returns:
        numba's function, whose ``address`` is to be called.
    """

    def work(pointer: Any) -> None:
        table = carray(pointer, (LONG,), np.int64)
        row, width = array_at(table, np.int64(INPUT), np.float32), table[WIDTH]
        begin, stretch = 0, taken(table, NEXT)
        for place in range(PLAN, PLAN + 4 * table[MATRICES], 4):
            step, rows = table[place + 1], table[place + 2]
            end = begin + (rows + STRETCH - 1) // STRETCH
            matrix, out = array_at(table, place, np.float32), array_at(table, place + 3, np.float32)
            while stretch < end:
                first = (stretch - begin) * STRETCH
                _multiply(matrix, first, min(first + STRETCH, rows), step, row, width, out)
                stretch = taken(table, NEXT)
            begin = end

    return cfunc(types.void(types.voidptr), cache=kept, error_model="numpy")(work)
