"""Grouped heads in torch: query heads laid out beside the key/value head that they share, without a copy."""

from __future__ import annotations

from torch import Tensor

from polyhead.spec import AttentionSpec, Differential


def by_group(query: Tensor, spec: AttentionSpec) -> Tensor:
    """Lay query heads out by map, key/value head and place in its group.

    Args:
        query: ``[batch, num_heads · maps, q_len, width]``.
        spec: The mechanism.

    Returns:
        ``[batch, maps, kv_heads, group, q_len, width]``, a view.
    """
    shape = (spec.num_kv_heads, spec.group_size)
    if _maps_outermost(spec):
        return query.unflatten(1, (spec.num_maps, *shape))
    return query.unflatten(1, (*shape, spec.num_maps)).movedim(3, 1)


def keys_by_map(key: Tensor, spec: AttentionSpec) -> Tensor:
    """Lay key heads out by map: ``[batch, kv_heads · maps, kv_len, width]`` to ``[batch, maps, kv_heads, ...]``."""
    if _maps_outermost(spec):
        return key.unflatten(1, (spec.num_maps, spec.num_kv_heads))
    return key.unflatten(1, (spec.num_kv_heads, spec.num_maps)).movedim(2, 1)


def _maps_outermost(spec: AttentionSpec) -> bool:
    return isinstance(spec.weighting, Differential) and spec.weighting.form == "diffllama"
