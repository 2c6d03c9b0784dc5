"""The one table of tolerances, and the one comparison that reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

TOLERANCE = {
    "float64": 1e-10,
    "float32": 1e-5,
    # Half precision is compared with the oracle fed the same rounded inputs. What is left is the rounding of
    # rotated queries and keys, of weights inside SDPA and of the output: a few half units in the last place.
    "bfloat16": 4 * 2**-8,
    "float16": 4 * 2**-11,
}
"""Largest difference allowed by the dtype computed in, as a part of the expected number or of 1, if that is more."""


def assert_close(actual: Any, expected: Any, dtype: torch.dtype | str, *, what: str = "output") -> None:
    """Assert that two arrays agree to the table's tolerance, or say where they differ most.

    Args:
        actual: An array or tensor.
        expected: What it must be; numbers alone, NaN fails.
        dtype: The dtype that was computed in: the table's row.
        what: What is compared, for the message.
    """
    ours, theirs = as_array(actual), as_array(expected)
    assert ours.shape == theirs.shape, f"{what} has shape {list(ours.shape)}, expected {list(theirs.shape)}"
    if not ours.size:
        return
    excess = np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))
    worst = np.unravel_index(np.where(np.isnan(excess), np.inf, excess).argmax(), excess.shape)
    limit = TOLERANCE[str(dtype).removeprefix("torch.")]
    where = [int(index) for index in worst]
    assert excess[worst] <= limit, (
        f"{what} differs most at {where}: {ours[worst]!s} where {theirs[worst]!s} is expected, "
        f"{excess[worst]:.1e} apart and {limit:.1e} allowed"
    )


def as_array(values: Any) -> NDArray[np.float64]:
    """Return an array or tensor as float64 in NumPy."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
