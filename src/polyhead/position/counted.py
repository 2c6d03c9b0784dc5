"""Positions that count on by one, which every layer asks for at every token: made once, and shared."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def counted(first: int, count: int, device: torch.device) -> Tensor:
    """Return the whole numbers ``[1, count]`` from ``first`` on; on a processor they are shared, so only to be read.

    Another device makes its own, which takes less time than a copy from here.
    """
    if device.type != "cpu" or torch.compiler.is_compiling() or first < 0:
        return torch.arange(first, first + count, device=device)[None]
    numbers = _numbers(1 << max(10, (first + count).bit_length()))
    return torch.from_numpy(numbers[None, first : first + count])


@functools.cache  # sizes double, so all that were ever asked for are twice the longest
def _numbers(count: int) -> NDArray[np.int64]:
    return np.arange(count, dtype=np.int64)
