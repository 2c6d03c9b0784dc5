"""Learned relative positions in torch: tables of numbers (T5, clipped) and Shaw's vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.spec import AttentionSpec, RelativeBias


def entries(spec: AttentionSpec, query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """Return which learned entry each pair uses.

    Args:
        spec: A spec with `RelativeBias` position.
        query_positions: Whole numbers ``[batch or 1, q_len]``.
        key_positions: Whole numbers ``[batch or 1, kv_len]``.

    Returns:
        Whole numbers ``[batch or 1, q_len, kv_len]``.
    """
    assert isinstance(spec.position, RelativeBias)
    limit = spec.position.max_distance
    lookup = torch.from_numpy(spec.position.buckets()).to(key_positions.device)
    distance = key_positions[:, None, :] - query_positions[:, :, None]
    return lookup[distance.clamp(-limit, limit) + limit]


def bias(table: Tensor, pair_entries: Tensor) -> Tensor:
    """Return the bias ``[batch or 1, num_heads, q_len, kv_len]`` from a table ``[entries, num_heads]``."""
    return table[pair_entries].movedim(-1, 1)


def key_scores(query: Tensor, relative_keys: Tensor, pair_entries: Tensor) -> Tensor:
    """Return Shaw's ``q_i·a^K_(j−i)``, without forming a vector for each pair.

    Args:
        query: ``[batch, ..., q_len, width]``.
        relative_keys: ``[entries, width]``.
        pair_entries: ``[batch or 1, q_len, kv_len]``.

    Returns:
        ``[batch, ..., q_len, kv_len]``.
    """
    per_entry = query @ relative_keys.mT
    return per_entry.gather(-1, _spread(pair_entries, per_entry))


def mixed_values(weights: Tensor, relative_values: Tensor, pair_entries: Tensor) -> Tensor:
    """Return Shaw's ``Σ_j w_ij a^V_(j−i)`` from weights ``[batch, ..., q_len, kv_len]``, ``[..., q_len, width]``."""
    per_entry = weights.new_zeros(*weights.shape[:-1], len(relative_values))
    return per_entry.scatter_add(-1, _spread(pair_entries, weights), weights) @ relative_values


def _spread(pair_entries: Tensor, like: Tensor) -> Tensor:
    middle = (1,) * (like.dim() - 3)
    shaped = pair_entries.view(pair_entries.shape[0], *middle, *pair_entries.shape[1:])
    return shaped.expand(*like.shape[:-1], pair_entries.shape[-1])
