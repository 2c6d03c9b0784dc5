"""What must be kept of a sequence so that the next token can be decoded, and which specs have no such thing.

A cache holds the past. It serves a spec whose queries see no later key, or what a query saw would change when
the next token came. What it must keep follows from the spec alone, so kernels, costs and pictures agree on it.
"""

from __future__ import annotations

import dataclasses

from polyhead.errors import SpecError
from polyhead.spec.attention import AttentionSpec
from polyhead.spec.choice import one_of
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
        row: How many numbers a token takes; with ``"state"`` the sums, whatever the number of tokens.
    """

    kind: str
    reach: Reach
    row: int

    def numbers(self, length: int) -> int:
        """Return how many numbers must be kept of a sequence."""
        if self.kind == "state":
            return self.row
        return self.row * (min(length, int(self.reach.size())) if self.kind == "rolling" else length)


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
    one_of("source", source, ("self", "cross"))
    if source == "cross":
        return Retention(kind="context", reach=Reach(left=None), row=_row(spec))
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
        sums = spec.num_kv_heads * spec.qk_head_dim * (spec.v_head_dim + 1)
        return Retention(kind="state", reach=Reach(left=None), row=sums)
    kind = "growing" if pattern.reach.left is None else "rolling"
    return Retention(kind=kind, reach=pattern.reach, row=_row(spec))


def _row(spec: AttentionSpec) -> int:
    """Return how many numbers a token's keys and values are, or its latent row."""
    stored = (shape for name, shape in spec.input_shapes().items() if name != "query" and shape is not None)
    return sum(heads * width for heads, width in stored)
