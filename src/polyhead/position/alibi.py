"""ALiBi's bias in torch."""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.spec import Alibi, AttentionSpec


def bias(spec: AttentionSpec, query_positions: Tensor, key_positions: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``−slope_h·|i − j|``.

    Args:
        spec: A spec with `Alibi` position.
        query_positions: Whole numbers ``[batch or 1, q_len]``.
        key_positions: Whole numbers ``[batch or 1, kv_len]``.
        dtype: The result's dtype.

    Returns:
        ``[batch or 1, num_heads, q_len, kv_len]``.
    """
    assert isinstance(spec.position, Alibi)
    slopes = torch.tensor(spec.position.head_slopes(spec.num_heads), dtype=dtype, device=key_positions.device)
    distance = (query_positions[:, :, None] - key_positions[:, None, :]).abs().to(dtype)
    return -slopes[:, None, None] * distance[:, None]
