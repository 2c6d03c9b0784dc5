"""Inputs of one's own for the tests of the comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import polyhead as ph
from polyhead.compare.inputs import Inputs

Array = NDArray[np.float64]


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Array]:
    """Draw an array of each shape."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def heads(num_heads: int = 4, num_kv_heads: int = 2, length: int = 6, width: int = 8) -> list[Array]:
    """Draw query, key and value of several heads."""
    shared = (num_kv_heads, length, width)
    return draw((num_heads, length, width), shared, shared)


def inputs(position: Any = None, pattern: Any = None, **sizes: int) -> Inputs:
    """Draw inputs with a base of their own, as a model's are."""
    query, key, value = heads(**sizes)
    storage = ph.Grouped(num_heads=len(query), num_kv_heads=len(key), head_dim=query.shape[-1])
    choices = {"position": position or ph.NoPosition(), "pattern": pattern or ph.Full()}
    base = ph.AttentionSpec(storage=storage, **choices)
    tokens = tuple(f"t{i}" for i in range(query.shape[1]))
    return Inputs(tokens=tokens, query=query, key=key, value=value, base=base)


def grouped(num_heads: int = 1, head_dim: int = 4, **choices: Any) -> ph.AttentionSpec:
    """Return a spec with grouped storage; ``num_kv_heads`` and ``v_head_dim`` go there too."""
    sizes = {name: choices.pop(name) for name in ("num_kv_heads", "v_head_dim") if name in choices}
    return ph.AttentionSpec(storage=ph.Grouped(num_heads=num_heads, head_dim=head_dim, **sizes), **choices)


def latent(num_heads: int = 1, rank: int = 2, width: int = 4, v_width: int = 4, **choices: Any) -> ph.AttentionSpec:
    """Return a spec whose keys and values unfold from a latent."""
    storage = ph.Latent(
        num_heads=num_heads, kv_lora_rank=rank, qk_nope_head_dim=width, qk_rope_head_dim=0, v_head_dim=v_width
    )
    return ph.AttentionSpec(storage=storage, **choices)
