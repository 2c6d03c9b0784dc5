"""A whole attention layer in NumPy and float64: projections and norms as they are defined, around the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

import polyhead as ph
from tests.inputs import Array
from tests.tolerances import as_array

Numbers = Mapping[str, Array]
"""A layer's state dict, as float64 arrays."""


def numbers_of(layer: nn.Module) -> dict[str, Array]:
    """Return a layer's state dict in NumPy."""
    return {name: as_array(tensor) for name, tensor in layer.state_dict().items()}


def drawn_numbers(spec: ph.LayerSpec, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Array]:
    """Return numbers for a layer that are no special case, as they are after rounding to a dtype.

    Norms are not 1, biases and sinks not 0, and λ of a differential spec stays near its λ_init.
    """
    rng = np.random.default_rng(seed)
    numbers = {}
    for name, shape in spec.parameter_shapes().items():
        drawn = rng.standard_normal(shape)
        if len(shape) > 1:
            drawn = drawn / np.sqrt(shape[-1])
        elif name.startswith("lambda"):
            drawn = 0.1 * drawn
        elif name.endswith("norm.weight") or name == "sub_norm":
            drawn = 1.0 + 0.2 * drawn
        else:
            drawn = 0.5 * drawn
        numbers[name] = as_array(torch.tensor(drawn, dtype=dtype))
    return numbers


def layer_of(spec: ph.LayerSpec, numbers: Numbers, dtype: torch.dtype = torch.float64) -> ph.Attention:
    """Return the layer that has these numbers."""
    layer = ph.Attention(spec, device="meta", dtype=dtype)
    layer.load_state_dict({name: torch.tensor(array, dtype=dtype) for name, array in numbers.items()}, assign=True)
    return layer.eval()


def forward(spec: ph.LayerSpec, numbers: Numbers, x: Array, context: Array | None = None, **given: Any) -> Array:
    """Return what a layer makes of a whole sequence.

    Args:
        spec: The layer.
        numbers: Its numbers.
        x: ``[batch, tokens, embed_dim]``.
        context: ``[batch, tokens, context_dim]``, with ``source="cross"`` alone.
        **given: ``key_mask`` and ``segments``, as the oracle takes them; ``positions``, of x with itself.

    Returns:
        ``[batch, tokens, embed_dim]``.
    """
    source = x if context is None else context
    positions = given.pop("positions", np.arange(x.shape[1]))
    key, value = stored(spec, numbers, source)
    output = ph.oracle.attend(
        queries(spec, numbers, x),
        key,
        value,
        spec.attention,
        params={name: numbers[name] for name in spec.attention.parameter_shapes()},
        query_positions=positions,
        key_positions=positions if context is None else np.arange(context.shape[1]),
        **given,
    )
    batch, heads, tokens, width = output.shape
    return _linear(numbers, "o_proj", output.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * width))


def queries(spec: ph.LayerSpec, numbers: Numbers, x: Array) -> Array:
    """Return the queries, as `attend` takes them."""
    if getattr(spec.attention.storage, "q_lora_rank", None) is None:
        flat = _linear(numbers, "q_proj", x)
    else:
        flat = _linear(numbers, "q_b_proj", _norm(spec, numbers, "q_a_norm", _linear(numbers, "q_a_proj", x)))
    return _norm(spec, numbers, "q_norm", _heads(flat, spec.attention.qk_head_dim))


def stored(spec: ph.LayerSpec, numbers: Numbers, source: Array) -> tuple[Array, Array | None]:
    """Return keys and values, or a latent's rows, as `attend` takes them and a cache stores them."""
    storage = spec.attention.storage
    if isinstance(storage, ph.Latent):
        row = _linear(numbers, "kv_a_proj", source)
        latent, rope_key = row[..., : storage.kv_lora_rank], row[..., storage.kv_lora_rank :]
        return np.concatenate([_norm(spec, numbers, "kv_a_norm", latent), rope_key], axis=-1)[:, None], None
    key = _heads(_linear(numbers, "k_proj", source), storage.head_dim)
    return _norm(spec, numbers, "k_norm", key), _heads(_linear(numbers, "v_proj", source), spec.attention.v_head_dim)


def _linear(numbers: Numbers, name: str, rows: Array) -> Array:
    return rows @ numbers[f"{name}.weight"].T + numbers.get(f"{name}.bias", 0.0)


def _norm(spec: ph.LayerSpec, numbers: Numbers, name: str, rows: Array) -> Array:
    """Apply an RMS norm, if the layer has it."""
    weight = numbers.get(f"{name}.weight")
    if weight is None:
        return rows
    return rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + spec.norm_eps) * weight


def _heads(flat: Array, width: int) -> Array:
    """Lay ``[batch, tokens, heads · width]`` out as ``[batch, heads, tokens, width]``; head h has the h-th piece."""
    pieces = [flat[..., start : start + width] for start in range(0, flat.shape[-1], width)]
    return np.stack(pieces, axis=1)
