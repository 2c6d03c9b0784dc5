"""What a spec says of itself, as data: its parts, the Python that writes it, its pattern's picture, what it learns."""

from __future__ import annotations

import math
import re
from typing import Any

from polyhead.page import SCHEMA
from polyhead.spec.attention import AttentionSpec
from polyhead.spec.combined import Combined
from polyhead.spec.pattern import Band, Chunked, Global, Pattern

SIZE = 32
"""Positions that a picture shows."""


def composed(spec: AttentionSpec) -> dict[str, Any]:
    """Return what a spec says of itself, as JSON-ready data.

    What runs it and what it costs is not the spec's to say, so ``kernel`` and ``cost`` are None; and since there is a
    spec, its choices are defined together, and there is no ``reason`` and no ``nearest``.

    Args:
        spec: The spec.

    Returns:
        The data.
    """
    return {
        "schema": SCHEMA,
        "legal": True,
        "reason": None,
        "nearest": None,
        "nearest_repr": None,
        "spec": parts_of(spec),
        "spec_repr": repr(spec),
        "code": code_of(spec),
        "picture": picture_of(spec.pattern),
        "kernel": None,
        "cost": None,
        "learns": {name: list(shape) for name, shape in spec.parameter_shapes().items()},
    }


def parts_of(spec: AttentionSpec) -> dict[str, Any]:
    """Return the four choices of a spec as data, by their names."""
    return {name: part for name, part in spec.to_data().items() if name != "type"}


def code_of(spec: AttentionSpec) -> str:
    """Return Python that writes a spec, with the import that it needs."""
    text = repr(spec)
    names = sorted(set(re.findall(r"\b([A-Z]\w*)[.(]", text)))
    return f"from polyhead import {', '.join(names)}\n\nspec = {text}\n"


def picture_of(pattern: Pattern, size: int = SIZE) -> dict[str, Any]:
    """Return which keys each query sees, as data: of the first tokens, or of more with some between them left out.

    Tokens are left out where a window or a chunk would otherwise reach past the picture and not be seen to end.

    Args:
        pattern: The pattern.
        size: How many queries and keys are shown.

    Returns:
        ``size``; ``step``, the distance between two positions that are shown, the last of which ends the sequence;
        ``heads``, of which the first alone is shown; and ``allowed``, for each query a text of 0 and 1.
    """
    import numpy as np

    reach = _reach(pattern)
    step = 1 if reach < size else 2 ** math.ceil(math.log2(2 * reach / size))
    positions = step * np.arange(size)
    allowed = pattern.allowed(positions, positions, kv_len=size * step, head=0)
    rows = ["".join("1" if seen else "0" for seen in row) for row in np.broadcast_to(allowed, (size, size))]
    return {"size": size, "step": step, "heads": 1, "allowed": rows}


def _reach(pattern: Pattern) -> int:
    """Return the largest distance at which a pattern changes for all queries alike; 0 where there is none."""
    if isinstance(pattern, Combined):
        return max(_reach(part) for part in pattern.parts)
    if isinstance(pattern, Band):
        return max(pattern.left or 0, pattern.right or 0)
    if isinstance(pattern, Chunked):
        return pattern.size * (1 + max(pattern.left, pattern.right))
    if isinstance(pattern, Global):
        return max(pattern.first, pattern.last)
    return pattern.unit if pattern.unit > 1 else 0
