"""Which cache a spec needs."""

from __future__ import annotations

from typing import Any

import torch

from polyhead.cache.base import Cache
from polyhead.cache.context import ContextCache
from polyhead.cache.growing import GrowingCache
from polyhead.cache.rolling import RollingCache
from polyhead.cache.state import StateCache
from polyhead.errors import ShapeError, UnsupportedError
from polyhead.spec import AttentionSpec, retention
from polyhead.spec.choice import as_int


def new_cache(
    spec: AttentionSpec,
    *,
    batch: int,
    max_seq_len: int | None = None,
    slack: int = 0,
    source: str = "self",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Cache:
    """Make an empty cache for a spec.

    Args:
        spec: The mechanism.
        batch: Number of sequences.
        max_seq_len: Length that no sequence may pass, and what is reserved where every token is kept. None: no
            bound, and room grows as needed. A rolling cache has no bound.
        slack: How many of the last tokens a rolling cache can crop; others crop any number, or, if they keep
            sums, none.
        source: ``"self"``, or ``"cross"`` for attention over another, fixed sequence.
        dtype: Dtype of keys and values.
        device: Where to keep them.

    Returns:
        The cache.

    Raises:
        SpecError: If the spec has none, see `polyhead.spec.caching.retention`; or if a number is not a whole one.
        ShapeError: If ``dtype`` is not a floating one.
        UnsupportedError: If ``slack`` is asked of a cache that keeps sums.
    """
    as_int("slack", slack, at_least=0)
    if not dtype.is_floating_point:
        raise ShapeError(f"dtype={dtype} is not allowed; give a floating dtype")
    kind = retention(spec, source).kind
    where = torch.empty(0, device=device).device  # as tensors name it: cuda becomes cuda:0
    made_of: dict[str, Any] = {"batch": batch, "max_seq_len": max_seq_len, "dtype": dtype, "device": where}
    if kind == "rolling":
        return RollingCache(spec, slack=slack, **made_of)
    if kind == "state" and slack:
        raise UnsupportedError(
            f"slack={slack}: a cache of sums cannot crop; clone() it before tokens that may have to go"
        )
    others: dict[str, type[Cache]] = {"growing": GrowingCache, "state": StateCache, "context": ContextCache}
    return others[kind](spec, **made_of)
