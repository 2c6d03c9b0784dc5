"""Where keys and values come from: cross-attention (#4)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.settings import Settings
from polyhead.spec import AttentionSpec, Full


def as_cross(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Let every query see every key of the other sequence; each sequence counts from 0."""
    return dataclasses.replace(base, pattern=Full())
