"""The third choice: which pairs may meet, as a function of positions.

Every reader of a pattern (oracle, kernels, cost, pictures) reads these two methods, so they cannot disagree:
``allowed`` answers for each pair, ``key_ranges`` for a block of consecutive queries, without listing its pairs.
A third, ``reach``, says what a cache may forget, and ``neighbours`` lists each query's keys, where they are few.
Patterns combine, see `polyhead.spec.combined`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from polyhead.errors import SpecError
from polyhead.spec.choice import Choice, as_int
from polyhead.spec.neighbours import Neighbours, between, unlisted
from polyhead.spec.ranges import BlockState, KeyRange, Reach, Repeat, band_layout, clip, state_of


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Pattern(Choice):
    """A set of (query, key) pairs that may meet.

    Positions count from 0 and need not be contiguous or sorted; arrays are NumPy's or torch's alike.
    """

    def allowed(self, query_positions: Any, key_positions: Any, *, kv_len: int, head: int = 0) -> Any:
        """Return which pairs may meet.

        Args:
            query_positions: Whole numbers, ``[..., q_len]``.
            key_positions: Whole numbers, ``[..., kv_len]``.
            kv_len: Number of keys in the whole sequence, which `Global` and some links depend on.
            head: The head, for patterns that differ between heads.

        Returns:
            Booleans ``[..., q_len, kv_len]`` of the positions' own array type; True may attend.
        """
        raise NotImplementedError

    def key_ranges(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> list[KeyRange]:
        """Return what the queries at positions ``start`` to ``stop - 1`` see of keys 0 to ``kv_len - 1``.

        Args:
            start: First query position.
            stop: One past the last; at least ``start + 1``.
            kv_len: Number of keys.
            head: The head, for patterns that differ between heads.

        Returns:
            Disjoint sorted ranges. A FULL range is seen whole by every query; outside all ranges nothing is
            seen. PARTIAL is exact for the primitives and may be cautious for combinations.
        """
        raise NotImplementedError

    def neighbours(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> Neighbours:
        """Return the keys that each query at positions ``start`` to ``stop - 1`` sees of keys 0 to ``kv_len - 1``.

        Args:
            start: First query position.
            stop: One past the last; at least ``start + 1``.
            kv_len: Number of keys.
            head: The head, for patterns that differ between heads.

        Returns:
            A list for each query, at most `degree` long, or that it may see any number: all queries where `degree`
            is None, and those that see everything.
        """
        return unlisted(stop - start)

    def block_state(self, queries: tuple[int, int], keys: tuple[int, int], *, kv_len: int, head: int = 0) -> BlockState:
        """Return whether a rectangle of half-open query and key ranges is full, partial or empty."""
        return state_of(self.key_ranges(*queries, kv_len=kv_len, head=head), *keys)

    @property
    def is_causal(self) -> bool:
        """Whether no query ever sees a later key."""
        return False

    @property
    def depends_on_kv_len(self) -> bool:
        """Whether a pair's fate depends on how long the sequence is."""
        return False

    @property
    def reach(self) -> Reach:
        """How far back a query looks: what a cache must keep of a causal pattern. Not bounded, unless overridden."""
        return Reach(left=None)

    @property
    def degree(self) -> int | None:
        """How many keys a query sees at most, whatever the length, but for a few queries that see all. None: any."""
        return None

    @property
    def unit(self) -> int:
        """Length of the aligned runs of tokens that are treated alike."""
        return 1

    def in_units(self, size: int, *, kv_len: int) -> Pattern | None:
        """Return the pattern over aligned runs of tokens, or None where a run of queries sees a part of one.

        Args:
            size: Tokens in a run; the last run may be shorter.
            kv_len: Number of keys.

        Returns:
            A pattern whose positions count runs.
        """
        return self if size == 1 else None

    @property
    def repeat(self) -> Repeat | None:
        """From where on, and by how much moved, it looks the same; None where it never need."""
        return None

    @property
    def per_head(self) -> bool:
        """Whether heads may differ in what they see."""
        return False

    @property
    def table_heads(self) -> tuple[int, ...]:
        """The head counts that given per-head tables are made for, one for each such table."""
        return ()

    def __and__(self, other: Pattern) -> Pattern:
        from polyhead.spec.combined import AllOf  # it builds on this module

        return AllOf.of((self, other)) if isinstance(other, Pattern) else NotImplemented

    def __or__(self, other: Pattern) -> Pattern:
        from polyhead.spec.combined import AnyOf

        return AnyOf.of((self, other)) if isinstance(other, Pattern) else NotImplemented

    def merged(self, other: Pattern, *, union: bool) -> Pattern | None:
        """Return one primitive equal to the two combined, or None if there is none."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Band(Pattern):
    """A window around the query: ``-left ≤ key - query ≤ right``; the query itself is not counted.

    `Full`, `Causal` and `SlidingWindow` are three names for it. Mistral's window of 4096 tokens, itself
    included, is ``SlidingWindow.causal(4096)``, which is ``left=4095, right=0``; Longformer's radius w is
    ``SlidingWindow.symmetric(w)``.

    *Differs from* flash-attention's ``window_size``, where -1 means unbounded; here None does.

    Attributes:
        left: How many earlier keys a query sees. None: all.
        right: How many later keys a query sees. None: all.

    *Source*: arXiv 2004.05150; causal as in GPT, 2018; Mistral's window arXiv 2310.06825.
    """

    left: int | None = None
    right: int | None = None

    def __post_init__(self) -> None:
        self._keep(as_int, "left", "right", at_least=0)

    @classmethod
    def causal(cls, size: int) -> Self:
        """Return the last ``size`` tokens, the query's own included."""
        return cls(left=as_int("size", size, at_least=1) - 1, right=0)

    @classmethod
    def symmetric(cls, radius: int) -> Self:
        """Return the ``radius`` tokens on either side, and the query's own."""
        return cls(left=radius, right=radius)

    def __repr__(self) -> str:
        if self.left is None:
            return {None: "Full()", 0: "Causal()"}.get(self.right, f"SlidingWindow(right={self.right})")
        return f"SlidingWindow(left={self.left}" + (")" if self.right is None else f", right={self.right})")

    def allowed(self, query_positions: Any, key_positions: Any, *, kv_len: int, head: int = 0) -> Any:  # noqa: D102
        offset = key_positions[..., None, :] - query_positions[..., :, None]
        allowed = offset == offset  # all True, in the caller's array type
        if self.left is not None:
            allowed = allowed & (offset >= -self.left)
        if self.right is not None:
            allowed = allowed & (offset <= self.right)
        return allowed

    def key_ranges(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> list[KeyRange]:  # noqa: D102
        def seen(query: int) -> tuple[int, int]:
            low = 0 if self.left is None else query - self.left
            return low, kv_len if self.right is None else query + self.right + 1

        return band_layout(seen(start), seen(stop - 1), kv_len)

    def neighbours(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> Neighbours:  # noqa: D102
        import numpy as np

        if self.left is None or self.right is None:
            return unlisted(stop - start)
        queries = np.arange(start, stop)
        return between(queries - self.left, queries + self.right, kv_len)

    @property
    def degree(self) -> int | None:  # noqa: D102
        return None if self.left is None or self.right is None else self.left + 1 + self.right

    @property
    def is_causal(self) -> bool:  # noqa: D102
        return self.right == 0

    @property
    def reach(self) -> Reach:  # noqa: D102
        return Reach(left=self.left)

    @property
    def repeat(self) -> Repeat:  # noqa: D102
        return Repeat(1)

    def merged(self, other: Pattern, *, union: bool) -> Pattern | None:  # noqa: D102
        if not isinstance(other, Band):
            return None

        def side(a: int | None, b: int | None) -> int | None:
            bounds = [x for x in (a, b) if x is not None]
            return (max(bounds) if len(bounds) == 2 else None) if union else min(bounds, default=None)

        return Band(left=side(self.left, other.left), right=side(self.right, other.right))


SlidingWindow = Band


def Full() -> Band:  # noqa: N802 - reads as the pattern that it names
    """Return the pattern in which every pair may meet."""
    return Band()


def Causal() -> Band:  # noqa: N802
    """Return the pattern in which a query sees itself and what came before it."""
    return Band(right=0)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Chunked(Pattern):
    """Chunks of consecutive tokens that see one another, and ``left`` and ``right`` neighbouring chunks.

    LLaMA 4's chunked attention is ``Chunked(size=8192) & Causal()``; BigBird's window of three blocks is
    ``Chunked(size=64, left=1, right=1)``.

    Attributes:
        size: Tokens in a chunk; chunk boundaries lie at multiples of it.
        left: How many earlier chunks are seen besides one's own.
        right: How many later chunks.

    *Source*: LLaMA 4's model code, 2025; blocks of BigBird, arXiv 2007.14062, appendix D.
    """

    size: int
    left: int = 0
    right: int = 0

    def __post_init__(self) -> None:
        self._keep(as_int, "size", at_least=1)
        self._keep(as_int, "left", "right", at_least=0)

    def allowed(self, query_positions: Any, key_positions: Any, *, kv_len: int, head: int = 0) -> Any:  # noqa: D102
        offset = (key_positions // self.size)[..., None, :] - (query_positions // self.size)[..., :, None]
        return (offset >= -self.left) & (offset <= self.right)

    def key_ranges(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> list[KeyRange]:  # noqa: D102
        def seen(query: int) -> tuple[int, int]:
            chunk = query // self.size
            return (chunk - self.left) * self.size, (chunk + self.right + 1) * self.size

        return band_layout(seen(start), seen(stop - 1), kv_len)

    def neighbours(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> Neighbours:  # noqa: D102
        import numpy as np

        chunks = np.arange(start, stop) // self.size
        return between((chunks - self.left) * self.size, (chunks + self.right + 1) * self.size - 1, kv_len)

    @property
    def degree(self) -> int:  # noqa: D102
        return (self.left + 1 + self.right) * self.size

    @property
    def is_causal(self) -> bool:  # noqa: D102
        return self.size == 1 and self.right == 0

    @property
    def reach(self) -> Reach:  # noqa: D102
        return Reach(left=(self.left + 1) * self.size - 1)

    @property
    def unit(self) -> int:  # noqa: D102
        return self.size

    def in_units(self, size: int, *, kv_len: int) -> Pattern | None:  # noqa: D102
        if self.size % size:
            return None
        return dataclasses.replace(self, size=self.size // size)

    @property
    def repeat(self) -> Repeat:  # noqa: D102
        return Repeat(self.size)

    def merged(self, other: Pattern, *, union: bool) -> Pattern | None:  # noqa: D102
        if not isinstance(other, Chunked) or other.size != self.size:
            return None
        pick = max if union else min
        return Chunked(size=self.size, left=pick(self.left, other.left), right=pick(self.right, other.right))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Global(Pattern):
    """Tokens at the ends that see all and are seen by all.

    Attributes:
        first: How many at the start.
        last: How many at the end; with any, the pattern depends on the sequence's length.

    *Source*: arXiv 2004.05150 and 2007.14062.
    """

    first: int
    last: int = 0

    def __post_init__(self) -> None:
        self._keep(as_int, "first", "last", at_least=0)
        if self.first + self.last == 0:
            raise SpecError("Global(first=0, last=0) makes no token global; give first or last at least 1")

    def allowed(self, query_positions: Any, key_positions: Any, *, kv_len: int, head: int = 0) -> Any:  # noqa: D102
        queries, keys = (self._is_global(positions, kv_len) for positions in (query_positions, key_positions))
        return queries[..., :, None] | keys[..., None, :]

    def _is_global(self, positions: Any, kv_len: int) -> Any:
        at_start = positions < self.first
        return at_start | (positions >= kv_len - self.last) if self.last else at_start

    def key_ranges(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> list[KeyRange]:  # noqa: D102
        tail = kv_len - self.last
        in_tail, touches_tail = (self.last > 0 and query >= tail for query in (start, stop - 1))
        if stop <= self.first or in_tail or self.first >= tail:
            return clip([KeyRange(0, kv_len, BlockState.FULL)], kv_len)
        middle = [KeyRange(self.first, tail, BlockState.PARTIAL)] if start < self.first or touches_tail else []
        ends = [KeyRange(0, self.first, BlockState.FULL), KeyRange(tail, kv_len, BlockState.FULL)]
        return clip([ends[0], *middle, ends[1]], kv_len)

    def neighbours(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> Neighbours:  # noqa: D102
        import numpy as np

        queries, tail = np.arange(start, stop), kv_len - self.last
        ends = np.concatenate([np.arange(min(self.first, kv_len)), np.arange(max(self.first, tail), kv_len)])
        return Neighbours(np.tile(ends, (len(queries), 1)), self._is_global(queries, kv_len))

    @property
    def degree(self) -> int:  # noqa: D102
        return self.first + self.last

    @property
    def depends_on_kv_len(self) -> bool:  # noqa: D102
        return self.last > 0

    @property
    def reach(self) -> Reach:  # noqa: D102
        return Reach(left=None) if self.last else Reach(left=0, first=self.first)

    def in_units(self, size: int, *, kv_len: int) -> Pattern | None:  # noqa: D102
        ragged = self.first % size or self.last % size or (self.last and kv_len % size)
        return None if ragged else Global(first=self.first // size, last=self.last // size)

    @property
    def repeat(self) -> Repeat | None:  # noqa: D102
        return None if self.last else Repeat(1, self.first)

    def merged(self, other: Pattern, *, union: bool) -> Pattern | None:  # noqa: D102
        if not (union and isinstance(other, Global)):
            return None
        return Global(first=max(self.first, other.first), last=max(self.last, other.last))
