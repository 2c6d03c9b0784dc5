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
    if _maps_outermost(spec):
        return heads_as(query, spec.num_maps, spec.num_kv_heads, spec.group_size)
    return heads_as(query, spec.num_kv_heads, spec.group_size, spec.num_maps).movedim(3, 1)


def query_steps(query: Tensor, spec: AttentionSpec) -> tuple[int, int, int]:
    """Return the strides of `by_group`'s key/value heads, maps and places in a group."""
    step = query.stride(1)
    if _maps_outermost(spec):
        return spec.group_size * step, spec.num_heads * step, step
    return spec.group_size * spec.num_maps * step, step, spec.num_maps * step


def key_steps(key: Tensor, spec: AttentionSpec) -> tuple[int, int]:
    """Return the strides of `keys_by_map`'s key/value heads and maps."""
    step = key.stride(1)
    return (step, spec.num_kv_heads * step) if _maps_outermost(spec) else (spec.num_maps * step, step)


def keys_by_map(key: Tensor, spec: AttentionSpec) -> Tensor:
    """Lay key heads out by map: ``[batch, kv_heads · maps, kv_len, width]`` to ``[batch, maps, kv_heads, ...]``."""
    if _maps_outermost(spec):
        return heads_as(key, spec.num_maps, spec.num_kv_heads)
    return heads_as(key, spec.num_kv_heads, spec.num_maps).movedim(2, 1)


def by_key_head(by_map: Tensor, spec: AttentionSpec) -> Tensor:
    """Undo `keys_by_map`'s order: ``[batch, maps, kv_heads, ...]`` to ``[batch, kv_heads · maps, ...]``."""
    return (by_map if _maps_outermost(spec) else by_map.movedim(2, 1)).flatten(1, 2)


def heads_as(x: Tensor, *shape: int) -> Tensor:
    """Lay the head dimension of ``[batch, heads, ...]`` out as ``[batch, *shape, ...]``."""
    return x.reshape(x.shape[0], *shape, *x.shape[2:])


def _maps_outermost(spec: AttentionSpec) -> bool:
    return isinstance(spec.weighting, Differential) and spec.weighting.form == "diffllama"
