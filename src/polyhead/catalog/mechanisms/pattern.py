"""Which pairs may meet: causal (#3), sliding window (#11), BigBird (#12)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.settings import Settings
from polyhead.spec import AttentionSpec, Causal


def as_causal(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Hide later tokens."""
    return dataclasses.replace(base, pattern=base.pattern & Causal())


def as_sliding_window(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Hide distant tokens."""
    return dataclasses.replace(base, pattern=base.pattern & settings.window)


def as_bigbird(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Keep a window, global tokens and random links."""
    return dataclasses.replace(base, pattern=base.pattern & settings.bigbird)
