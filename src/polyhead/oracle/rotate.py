"""RoPE as the paper draws it: each pair of widths is a complex number, and position turns it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.spec import Rotary

Array = NDArray[Any]


def rotate(x: Array, angles: Array, rotary: Rotary, *, start: int, width: int) -> Array:
    """Turn widths ``start`` to ``start + width - 1`` of queries or keys.

    Args:
        x: ``[..., dim]``.
        angles: Radians, broadcast against ``[..., width / 2]``.
        rotary: Which widths make a plane, and the factor on the result.
        start: First width that turns.
        width: How many turn.

    Returns:
        A copy of ``x`` (broadcast where the angles have more dimensions), turned.
    """
    before, turning, after = np.split(x, [start, start + width], axis=-1)
    if rotary.pairs == "half":
        real, imaginary = np.split(turning, 2, axis=-1)
    else:
        real, imaginary = turning[..., 0::2], turning[..., 1::2]
    turned = (real + 1j * imaginary) * np.exp(1j * angles) * rotary.amplitude
    if rotary.pairs == "half":
        parts = np.concatenate([turned.real, turned.imag], axis=-1)
    else:
        parts = np.stack([turned.real, turned.imag], axis=-1).reshape(*turned.shape[:-1], width)
    lead = parts.shape[:-1]
    before, after = (np.broadcast_to(part, (*lead, part.shape[-1])) for part in (before, after))
    return np.concatenate([before, parts, after], axis=-1)
