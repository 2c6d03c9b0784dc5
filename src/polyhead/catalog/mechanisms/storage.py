"""What is stored, and shared between heads: MHA (#2), MQA (#5), GQA (#6), MLA (#15)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.settings import Settings
from polyhead.errors import SpecError, UnsupportedError
from polyhead.spec import AttentionSpec, Grouped, Latent, NoPosition
from polyhead.spec.choice import divisors


def with_heads(base: AttentionSpec, settings: Settings, num_kv_heads: int | None) -> AttentionSpec:
    """Give a base another number of key/value heads, after splitting it if it has a single head."""
    storage = base.storage
    if not isinstance(storage, Grouped):
        raise UnsupportedError(f"heads can be shared or given their own in Grouped storage alone, not in {storage!r}")
    if storage.num_heads == 1:
        pieces = settings.num_heads
        if storage.head_dim % pieces or base.v_head_dim % pieces:
            widths = f"{storage.head_dim} (queries and keys) and {base.v_head_dim} (values)"
            raise SpecError(f"num_heads={pieces} does not divide the widths {widths}; give num_heads that does")
        storage = Grouped(num_heads=pieces, head_dim=storage.head_dim // pieces, v_head_dim=base.v_head_dim // pieces)
    return dataclasses.replace(base, storage=dataclasses.replace(storage, num_kv_heads=num_kv_heads))


def as_mha(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Give every head its own keys and values."""
    return with_heads(base, settings, None)


def as_mqa(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Give all heads the same keys and values."""
    return with_heads(base, settings, 1)


def as_gqa(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Share keys and values between groups of heads."""
    split = with_heads(base, settings, settings.num_heads if base.num_heads == 1 else base.num_kv_heads)
    groups = settings.num_groups or max((d for d in divisors(split.num_kv_heads)[1:-1]), default=split.num_kv_heads)
    return with_heads(base, settings, groups)


def as_mla(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Replace keys and values by a latent; position, if any, has entered the keys before they were compressed."""
    storage = Latent(
        num_heads=base.num_heads,
        kv_lora_rank=settings.latent_rank or 1,
        qk_nope_head_dim=base.qk_head_dim,
        qk_rope_head_dim=0,
        v_head_dim=base.v_head_dim,
    )
    return dataclasses.replace(base, storage=storage, position=NoPosition())
