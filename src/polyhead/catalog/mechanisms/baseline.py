"""The baseline (#1), and flash attention (#13), which computes the baseline another way."""

from __future__ import annotations

from polyhead.catalog.settings import Settings
from polyhead.spec import AttentionSpec


def as_it_is(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Change nothing."""
    return base
