"""Every pair of mechanisms: do their outputs differ, by how much, and if not, why they should not."""

from __future__ import annotations

import dataclasses

import numpy as np

from polyhead.compare.inputs import Array
from polyhead.compare.table import Row, View
from polyhead.spec import Grouped

EQUAL_BELOW = 1e-9
"""Largest difference, relative to the outputs' size, that still counts as rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How two mechanisms' outputs for one token differ.

    Attributes:
        first: One mechanism's name.
        second: The other's.
        largest: Largest absolute difference of their outputs.
        distance: L2 distance of their outputs.
        differ: Whether that is more than rounding.
        reason: Where they do not differ: why they should not.
    """

    first: str
    second: str
    largest: float
    distance: float
    differ: bool
    reason: str


def difference(first: Row, second: Row) -> Difference:
    """Compare two rows of one token."""
    gap = first.output - second.output
    differ = not bool(are_equal(first.output, second.output))
    return Difference(
        first=first.name,
        second=second.name,
        largest=float(np.abs(gap).max()),
        distance=float(np.linalg.norm(gap)),
        differ=differ,
        reason="" if differ else why_equal(first, second),
    )


def are_equal(first: Array, second: Array) -> Array:
    """Return whether outputs ``[..., width]`` are the same but for rounding, token by token."""
    size = np.maximum(np.abs(first).max(axis=-1), np.abs(second).max(axis=-1))
    return np.asarray(np.abs(first - second).max(axis=-1) <= EQUAL_BELOW * np.maximum(size, 1e-30))


def why_equal(first: Row | View, second: Row | View) -> str:
    """Return why two mechanisms should give a token the same output, where they do; it follows from their specs."""
    a, b = first.spec, second.spec
    if a == b:
        tiled = [row.changes == "computation" for row in (first, second)]
        return "the same function, computed in tiles" if any(tiled) and not all(tiled) else "the same spec"
    changed = [name for name in ("storage", "position", "pattern", "weighting") if getattr(a, name) != getattr(b, name)]
    reasons = {
        "storage": "every head still meets the same keys and values",
        "pattern": "both patterns let this token see the same keys",
        "position": "position makes no difference to this token",
        "weighting": "both weightings give this token the same weights",
    }
    if changed == ["storage"] and not (isinstance(a.storage, Grouped) and isinstance(b.storage, Grouped)):
        return "the latent loses nothing here"
    return " and ".join(reasons[name] for name in changed)
