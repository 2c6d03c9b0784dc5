"""RoPE in torch: angles in float64, rounded once, and the rotation of a tensor's planes."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyhead.spec import AttentionSpec, Rotary


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
    """Return cos and sin of what each position turns by, ``[batch or 1, 1, len, planes]``, in float32 at least."""
    return _waves(positions.double()[:, None, :, None] * _frequencies(spec, None, positions), spec, dtype)


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
    """Turn the rotary widths of ``x [..., width]`` by angles whose cos and sin broadcast against its planes."""
    assert isinstance(spec.position, Rotary)
    cos, sin = waves
    wide, width = cos.dtype, spec.rotary_dim
    before, planes, after = x.split([start, width, x.shape[-1] - start - width], dim=-1)
    planes = planes.to(wide)
    if spec.position.pairs == "half":
        first, second = planes.chunk(2, dim=-1)
    else:
        first, second = planes[..., 0::2], planes[..., 1::2]
    turned = (first * cos - second * sin, first * sin + second * cos)
    joined = torch.cat(turned, dim=-1) if spec.position.pairs == "half" else torch.stack(turned, dim=-1).flatten(-2)
    if start == 0 and after.shape[-1] == 0:
        return joined.to(x.dtype)
    around = [part.expand(*joined.shape[:-1], -1) for part in (before, after)]
    return torch.cat([around[0], joined.to(x.dtype), around[1]], dim=-1)


def _waves(angles: Tensor, spec: AttentionSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert isinstance(spec.position, Rotary)
    wide, amplitude = torch.promote_types(dtype, torch.float32), spec.position.amplitude
    cos, sin = angles.cos(), angles.sin()
    if amplitude != 1.0:
        cos, sin = cos * amplitude, sin * amplitude
    return cos.to(wide), sin.to(wide)


def _frequencies(spec: AttentionSpec, query_positions: Tensor | None, like: Tensor) -> Tensor:
    assert isinstance(spec.position, Rotary)
    if query_positions is not None:
        found = spec.position.frequencies(spec.rotary_dim, query_positions.cpu().numpy())
    elif torch.compiler.is_compiling():  # a graph has them as constants, and the compiler warns of what remembers
        found = spec.position.frequencies(spec.rotary_dim)
    else:
        found = _remembered(spec.position, spec.rotary_dim)
    return torch.from_numpy(found).to(like.device)


@functools.lru_cache(maxsize=64)
def _remembered(position: Rotary, rotary_dim: int) -> NDArray[np.float64]:
    """Return frequencies that are the same for every query, which each layer asks for at each token."""
    return position.frequencies(rotary_dim)
