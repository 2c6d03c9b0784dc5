"""What must be kept of a sequence so that the next token can be decoded, and which specs have no such thing.

A cache holds the past. It serves a spec whose queries see no later key, or what a query saw would change when
the next token came. What it must keep follows from the spec alone, so kernels, costs and pictures agree on it.
"""

from __future__ import annotations

import dataclasses

from polyhead.errors import SpecError
from polyhead.spec.attention import AttentionSpec
from polyhead.spec.pattern import Causal
from polyhead.spec.position import Rotary
from polyhead.spec.ranges import Reach
from polyhead.spec.weighting import Linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retention:
    """What a cache keeps.

    Attributes:
        kind: ``"growing"``, the rows of every token; ``"rolling"``, those of a window and of kept first tokens;
            ``"state"``, sums over all tokens; ``"context"``, the rows of another, fixed sequence.
        reach: How far back a query looks, which bounds what is kept if the kind is ``"rolling"``.
    """

    kind: str
    reach: Reach


def retention(spec: AttentionSpec, source: str = "self") -> Retention:
    """Return what a cache keeps for a spec.

    Args:
        spec: The mechanism.
        source: ``"self"``, or ``"cross"`` where keys and values come from another sequence, which is fixed.

    Returns:
        The retention.

    Raises:
        SpecError: If queries may see later keys, or what they see depends on the sequence's final length.
    """
    pattern = spec.pattern
    if source == "cross":
        return Retention(kind="context", reach=Reach(left=None))
    if not pattern.is_causal:
        raise SpecError(
            f"pattern={pattern!r} lets a query see later keys, which do not exist yet when it is decoded, so there is "
            f"no cache for it; use {pattern & Causal()!r}"
        )
    if pattern.depends_on_kv_len:
        raise SpecError(
            f"pattern={pattern!r} depends on how long the whole sequence is, so each new token would change what "
            "earlier ones saw, and there is no cache for it; use Global(first=...) and RandomLinks(span='past')"
        )
    # a sum over rotated keys is made before the query is known, so each query cannot turn them its own way
    per_query = isinstance(spec.position, Rotary) and spec.position.per_query
    if isinstance(spec.weighting, Linear) and not per_query:
        return Retention(kind="state", reach=Reach(left=None))
    return Retention(kind="growing" if pattern.reach.left is None else "rolling", reach=pattern.reach)
