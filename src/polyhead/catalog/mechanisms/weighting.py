"""How scores become weights: linear (#10), differential (#14)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.settings import Settings
from polyhead.errors import SpecError
from polyhead.spec import AttentionSpec, Causal, Differential, Full, Grouped, Linear, NoPosition


def as_linear(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Drop the softmax; a running sum knows only full and causal patterns, so a window is dropped with it."""
    pattern = Causal() if base.pattern.is_causal else Full()
    return dataclasses.replace(base, pattern=pattern, weighting=Linear(feature_map=settings.feature_map))


def as_differential(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Halve every head into two maps; position, if any, has entered queries and keys before they were halved."""
    if base.qk_head_dim % 2:
        raise SpecError(f"a head of width {base.qk_head_dim} cannot be halved into two maps; it must be even")
    storage = Grouped(
        num_heads=base.num_heads,
        num_kv_heads=base.num_kv_heads,
        head_dim=base.qk_head_dim // 2,
        v_head_dim=base.v_head_dim,
    )
    weighting = Differential(form="clipped", lambda_init=settings.lambda_init)
    return dataclasses.replace(base, storage=storage, position=NoPosition(), weighting=weighting)
