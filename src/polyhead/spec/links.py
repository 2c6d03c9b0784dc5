"""Patterns made of single links: drawn at random from a seed, or given as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from polyhead.errors import SpecError
from polyhead.spec.choice import as_int, one_of
from polyhead.spec.neighbours import Neighbours, distinct, listed
from polyhead.spec.pattern import Band, Chunked, Global, Pattern
from polyhead.spec.ranges import BlockState, KeyRange, clip, merge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Linked(Pattern):
    """Base of the patterns in which each query, or block of queries, has its own few keys, or blocks of keys.

    Attributes:
        block: Tokens in a block. None: links join single tokens.
    """

    block: int | None = None

    def links(self, query_positions: Any, *, kv_len: int, head: int = 0) -> NDArray[np.int64]:
        """Return the keys, or blocks of keys, that each query is linked to.

        Args:
            query_positions: Whole numbers ``[..., q_len]``.
            kv_len: Number of keys.
            head: The head.

        Returns:
            ``[..., q_len, links]`` of key positions, or block numbers if ``block`` is set; -1 for no link.
        """
        raise NotImplementedError

    @property
    def unit(self) -> int:  # noqa: D102
        return self.block or 1

    def in_units(self, size: int, *, kv_len: int) -> Pattern | None:  # noqa: D102
        if size == 1:
            return self
        return None if self._past_only or self.block != size else dataclasses.replace(self, block=None)

    @property
    def _past_only(self) -> bool:
        return False

    def allowed(self, query_positions: Any, key_positions: Any, *, kv_len: int, head: int = 0) -> Any:  # noqa: D102
        links = _like(self.links(query_positions, kv_len=kv_len, head=head), query_positions)
        keys = (key_positions // (self.block or 1))[..., None, :]
        queries = query_positions[..., :, None]
        allowed = (keys != keys) | (queries != queries)  # all False, in the caller's array type
        for link in range(links.shape[-1]):
            allowed = allowed | ((links[..., link, None] == keys) & (keys >= 0))
        if self._past_only:
            allowed = allowed & (key_positions[..., None, :] <= queries)
        return allowed

    def key_ranges(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> list[KeyRange]:  # noqa: D102
        import numpy as np

        size = self.block or 1
        queries = np.arange(start - start % size, stop, size)  # one for each unit
        counts: dict[int, int] = {}
        for row in self.links(queries, kv_len=kv_len, head=head).tolist():
            for unit in {unit for unit in row if unit >= 0}:
                counts[unit] = counts.get(unit, 0) + 1
        layout = clip(
            (
                KeyRange(unit * size, (unit + 1) * size, BlockState.FULL if n == len(queries) else BlockState.PARTIAL)
                for unit, n in sorted(counts.items())
            ),
            kv_len,
        )
        if self._past_only:
            layout = merge([layout, Band(right=0).key_ranges(start, stop, kv_len=kv_len)], min)
        return layout

    def neighbours(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> Neighbours:  # noqa: D102
        import numpy as np

        queries, size = np.arange(start, stop), self.block or 1
        units = self.links(queries, kv_len=kv_len, head=head)[..., None]
        keys = np.where(units < 0, -1, units * size + np.arange(size)).reshape(len(queries), -1)
        last = np.minimum(queries, kv_len - 1)[:, None] if self._past_only else kv_len - 1
        return listed(distinct(np.where(keys <= last, keys, -1)))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class RandomLinks(Linked):
    """A fixed number of keys for each query, drawn from a seed, the same on every machine and at every call.

    The range drawn from is cut into ``per_query`` equal strata and one key is drawn in each, so the links of
    a query are distinct, ``min(per_query, range)`` of them, spread over the whole range. A draw depends on
    the seed, the head and the query's position alone. With ``block``, blocks of queries draw blocks of keys.

    Attributes:
        per_query: Links for each query (or block of queries).
        seed: Seed of the draw.
        block: Tokens in a block. None: links join single tokens.
        span: ``"past"`` draws from keys 0 to the query's own position and sees no later key, also inside a
            block; ``"all"`` draws from the whole sequence and so depends on its length.

    *Source*: arXiv 2007.14062.
    """

    per_query: int
    seed: int
    span: str = "past"

    def __post_init__(self) -> None:
        self._keep(as_int, "per_query", "block", at_least=1)
        self._keep(as_int, "seed", at_least=0)
        one_of("span", self.span, ("past", "all"))

    def links(self, query_positions: Any, *, kv_len: int, head: int = 0) -> NDArray[np.int64]:  # noqa: D102
        import numpy as np

        size = self.block or 1
        queries = _to_numpy(query_positions)[..., None] // size
        choices = queries + 1 if self.span == "past" else np.full_like(queries, -(-kv_len // size))
        choices = np.where(queries < 0, 0, choices)
        draw = np.arange(self.per_query)
        low = draw * choices // self.per_query
        width = (draw + 1) * choices // self.per_query - low
        noise = _hash(self.seed, head, queries, draw)
        return np.where(width > 0, low + (noise % np.maximum(width, 1).astype(np.uint64)).astype(np.int64), -1)

    @property
    def degree(self) -> int:  # noqa: D102
        return self.per_query * (self.block or 1)

    @property
    def _past_only(self) -> bool:
        return self.span == "past"

    @property
    def is_causal(self) -> bool:  # noqa: D102
        return self.span == "past"

    @property
    def depends_on_kv_len(self) -> bool:  # noqa: D102
        return self.span == "all"

    @property
    def per_head(self) -> bool:  # noqa: D102
        return True


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Links(Linked):
    """Links given as a table, for all heads or for each; queries past its end have none.

    Attributes:
        table: ``table[head][query]`` is a tuple of keys; with one table, all heads share it. With ``block``
            the entries are blocks of keys for each block of queries. Queries may have different numbers.
        block: Tokens in a block. None: links join single tokens.
    """

    table: tuple[tuple[tuple[int, ...], ...], ...]

    def __post_init__(self) -> None:
        self._keep(as_int, "block", at_least=1)
        try:
            table = tuple(
                tuple(tuple(as_int("table", k, at_least=0) for k in row) for row in head) for head in self.table
            )
        except TypeError:
            raise SpecError("table must be nested three deep: table[head][query] lists that query's keys") from None
        if not table:
            raise SpecError("table=() has no head; give one table for all heads, or one for each")
        object.__setattr__(self, "table", table)

    def links(self, query_positions: Any, *, kv_len: int, head: int = 0) -> NDArray[np.int64]:  # noqa: D102
        import numpy as np

        rows: Sequence[Sequence[int]] = self.table[head if self.per_head else 0]
        queries = _to_numpy(query_positions) // (self.block or 1)
        first = max(0, queries.min(initial=len(rows)))
        asked = rows[first : max(0, queries.max(initial=-1) + 1)]
        width = max((len(row) for row in asked), default=0)
        padded = np.full((len(asked) + 1, width), -1, dtype=np.int64)  # the last row: no links
        for index, row in enumerate(asked):
            padded[index, : len(row)] = row
        outside = (queries < 0) | (queries >= len(rows))
        return padded[np.where(outside, len(asked), queries - first)]

    @property
    def degree(self) -> int:  # noqa: D102
        return max((len(row) for rows in self.table for row in rows), default=0) * (self.block or 1)

    @property
    def is_causal(self) -> bool:  # noqa: D102
        # Inside a block every query sees the whole linked block, so its last key must not pass its first query.
        size = self.block or 1
        return all(
            (key + 1) * size - 1 <= query * size for rows in self.table for query, row in enumerate(rows) for key in row
        )

    @property
    def per_head(self) -> bool:  # noqa: D102
        return len(self.table) > 1

    @property
    def table_heads(self) -> tuple[int, ...]:  # noqa: D102
        return (len(self.table),) if self.per_head else ()


def BigBird(  # noqa: N802 - reads as the pattern that it names
    *,
    radius: int = 1,
    num_global: int = 1,
    num_random: int = 1,
    seed: int = 0,
    block: int | None = None,
    span: str = "past",
) -> Pattern:
    """Return BigBird's pattern: a window, global first tokens, and random links, by token or by block.

    Args:
        radius: Tokens (or blocks) seen on either side.
        num_global: First tokens (or blocks) that see all and are seen by all; may be 0.
        num_random: Random links for each query (or block of queries); may be 0.
        seed: Seed of the links.
        block: Tokens in a block, 64 in the paper's models. None: all three parts count single tokens.
        span: Where links are drawn from, see `RandomLinks`; the paper's encoder draws from ``"all"``.

    Returns:
        The union of the parts. ``BigBird(...) & Causal()`` is its decoder form.

    *Source*: arXiv 2007.14062.
    """
    size = 1 if block is None else as_int("block", block, at_least=1)
    pattern: Pattern = Band.symmetric(radius) if block is None else Chunked(size=block, left=radius, right=radius)
    if as_int("num_global", num_global, at_least=0):
        pattern = pattern | Global(first=num_global * size)
    if as_int("num_random", num_random, at_least=0):
        pattern = pattern | RandomLinks(per_query=num_random, seed=seed, block=block, span=span)
    return pattern


def _hash(seed: int, head: int, queries: NDArray[np.int64], draw: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Mix four numbers into 64 evenly spread bits (the finaliser of SplitMix64, applied once for each)."""
    import numpy as np

    state = np.zeros(np.broadcast_shapes(queries.shape, draw.shape), dtype=np.uint64)
    parts = (np.full(1, seed % 2**64, dtype=np.uint64), np.full(1, head), queries, draw)
    for part in parts:  # each is mixed in before the next: seed + head alone would make one head's draw another's
        state = state + part.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def _to_numpy(positions: Any) -> NDArray[np.int64]:
    import numpy as np

    return np.asarray(positions.cpu() if hasattr(positions, "cpu") else positions, dtype=np.int64)


def _like(array: NDArray[np.int64], reference: Any) -> Any:
    """Return a NumPy array as the kind of array that the reference is."""
    return reference.new_tensor(array) if hasattr(reference, "new_tensor") else array
