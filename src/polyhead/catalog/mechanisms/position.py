"""How position enters: relative bias (#7), RoPE (#8), ALiBi (#9)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.settings import Settings
from polyhead.spec import Alibi, AttentionSpec, RelativeBias, Rotary


def as_relative_bias(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Add a number per distance to the score."""
    return dataclasses.replace(base, position=RelativeBias.clipped(max_distance=settings.max_distance))


def as_rope(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Rotate queries and keys, by the base's own RoPE if it has one."""
    own = base.position if isinstance(base.position, Rotary) else settings.rotary
    return dataclasses.replace(base, position=own)


def as_alibi(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Subtract a slope times the distance."""
    return dataclasses.replace(base, position=Alibi(slopes=settings.alibi_slopes))
