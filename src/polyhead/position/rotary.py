"""RoPE in torch: angles in float64, rounded once, and the rotation of a tensor's planes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.position.counted import counted
from polyhead.spec import AttentionSpec, Rotary

REMEMBERED_NUMBERS = 2**19
"""Numbers up to which the waves of a call are remembered, 2 MiB in float32 for each of the two."""


def rotate(x: Tensor, positions: Tensor, spec: AttentionSpec, *, start: int) -> Tensor:
    """Rotate queries or keys by their own positions.

    Args:
        x: ``[batch, heads, len, width]``.
        positions: Whole numbers ``[batch or 1, len]``.
        spec: A spec with `Rotary` position whose frequencies are the same for every query.
        start: First width that turns.

    Returns:
        ``x`` rotated, in its own dtype; the arithmetic is in float32 at least.
    """
    return turn(x, waves(positions, spec, x.dtype), spec, start=start)


def waves(positions: Tensor, spec: AttentionSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the waves of positions ``[batch or 1, len]``, which `turn` takes: ``[batch or 1, 1, len, rotary_dim]``."""
    return _waves(positions.double()[:, None, :, None] * _frequencies(spec, None, positions), spec, dtype)


def counted_waves(
    first: int, count: int, spec: AttentionSpec, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the `waves` of ``count`` positions from ``first`` on; on a processor remembered, since all layers ask.

    Args:
        first: The first position.
        count: Number of positions.
        spec: A spec with `Rotary` position whose frequencies are the same for every query.
        dtype: Dtype of what is turned.
        device: Where that is.

    Returns:
        Two tensors ``[1, 1, count, rotary_dim]``, only to be read.
    """
    assert isinstance(spec.position, Rotary)
    if device.type != "cpu" or torch.compiler.is_compiling() or count * spec.rotary_dim > REMEMBERED_NUMBERS:
        return waves(counted(first, count, device), spec, dtype)
    wide = "float64" if dtype == torch.float64 else "float32"
    cos, sin = _remembered_waves(spec.position, spec.rotary_dim, first, count, wide)
    return torch.from_numpy(cos), torch.from_numpy(sin)


def rotate_for_queries(
    query: Tensor, key: Tensor, positions: tuple[Tensor, Tensor], spec: AttentionSpec
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys by frequencies that each query chooses.

    Args:
        query: ``[batch, maps, kv_heads, group, q_len, width]``.
        key: ``[batch, maps, kv_heads, kv_len, width]``.
        positions: Those of the queries ``[batch or 1, q_len]`` and of the keys ``[batch or 1, kv_len]``.
        spec: A spec with `Rotary` position.

    Returns:
        The query, and the keys as each query sees them: ``[batch, maps, kv_heads, q_len, kv_len, width]``,
        where q_len is 1 if all queries see the same.
    """
    assert isinstance(spec.position, Rotary)
    query_positions, key_positions = (p.double() for p in positions)
    frequencies = _frequencies(spec, positions[0] if spec.position.per_query else None, positions[0])
    per_query = frequencies if spec.position.per_query else frequencies[None, None]
    query_angles = (query_positions[..., None] * per_query)[:, None, None, None]
    key_angles = (key_positions[:, None, :, None] * per_query[:, :, None])[:, None, None]
    start = spec.rotary_offset  # a latent's keys are expanded by now, and laid out as its queries are
    query_waves, key_waves = (_waves(angles, spec, query.dtype) for angles in (query_angles, key_angles))
    return turn(query, query_waves, spec, start=start), turn(key[..., None, :, :], key_waves, spec, start=start)


def turn(x: Tensor, waves: tuple[Tensor, Tensor], spec: AttentionSpec, *, start: int) -> Tensor:
    """Turn the rotary widths of ``x [..., width]`` by `waves` that broadcast against them."""
    assert isinstance(spec.position, Rotary)
    cos, sin = waves
    width = spec.rotary_dim
    planes = x if width == x.shape[-1] else x[..., start : start + width]
    planes = planes if planes.dtype == cos.dtype else planes.to(cos.dtype)
    if spec.position.pairs == "half":
        partners = planes.roll(width // 2, dims=-1)
    else:
        partners = planes.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned = torch.addcmul(planes * cos, partners, sin)
    turned = turned if turned.dtype == x.dtype else turned.to(x.dtype)
    if width == x.shape[-1]:
        return turned
    around = (x[..., :start], x[..., start + width :])
    before, after = (part.expand(*turned.shape[:-1], -1) for part in around)
    return torch.cat([before, turned, after], dim=-1)


def _waves(angles: Tensor, spec: AttentionSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what a number, and its partner in the plane, are multiplied by: cos, and sin that is negative for x."""
    assert isinstance(spec.position, Rotary)
    wide, amplitude = torch.promote_types(dtype, torch.float32), spec.position.amplitude
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    join = torch.cat if spec.position.pairs == "half" else _alternating
    return join([cos, cos], -1).to(wide), join([-sin, sin], -1).to(wide)


def _alternating(parts: list[Tensor], dim: int) -> Tensor:
    return torch.stack(parts, dim).flatten(-2)


def _frequencies(spec: AttentionSpec, query_positions: Tensor | None, like: Tensor) -> Tensor:
    assert isinstance(spec.position, Rotary)
    if query_positions is not None:
        found = spec.position.frequencies(spec.rotary_dim, query_positions.cpu().numpy())
    elif torch.compiler.is_compiling():  # a graph has them as constants, and the compiler warns of what remembers
        found = spec.position.frequencies(spec.rotary_dim)
    else:
        found = _remembered(spec.position, spec.rotary_dim)
    return torch.from_numpy(found).to(like.device)


@functools.lru_cache(maxsize=16)
def _remembered_waves(
    position: Rotary, rotary_dim: int, first: int, count: int, dtype: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return `_waves` of positions that count on, as arrays: a tensor would belong to the mode that it was made in."""
    angles = np.arange(first, first + count)[:, None] * _remembered(position, rotary_dim)
    cos, sin = np.cos(angles) * position.amplitude, np.sin(angles) * position.amplitude
    axis = -2 if position.pairs == "half" else -1
    parts = (np.stack(pair, axis=axis).reshape(1, 1, count, rotary_dim) for pair in ((cos, cos), (-sin, sin)))
    first_part, second_part = (part.astype(dtype) for part in parts)
    return first_part, second_part


@functools.lru_cache(maxsize=64)
def _remembered(position: Rotary, rotary_dim: int) -> NDArray[np.float64]:
    """Return frequencies that are the same for every query, which each layer asks for at each token."""
    return position.frequencies(rotary_dim)
