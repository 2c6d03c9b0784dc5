"""Patterns combined: ``a & b`` allows what both allow, ``a | b`` what either does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from polyhead.errors import SpecError
from polyhead.spec.neighbours import Neighbours, distinct
from polyhead.spec.pattern import Full, Pattern
from polyhead.spec.ranges import KeyRange, Reach, Repeat, merge


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Combined(Pattern):
    """Base of `AllOf` and `AnyOf`: two or more patterns, flattened, sorted, without repetition."""

    parts: tuple[Pattern, ...]
    symbol: ClassVar[str]
    union: ClassVar[bool]

    @classmethod
    def of(cls, patterns: Iterable[Pattern]) -> Pattern:
        """Combine patterns, so that equal sets of parts compare equal.

        Two ways to write one set with parts nested three deep may still differ.

        Args:
            patterns: One or more patterns.

        Returns:
            The combination, or a primitive where one says the same.

        Raises:
            SpecError: If there is none, or one is not a pattern.
        """
        flat: list[Pattern] = []
        for pattern in patterns:
            if not isinstance(pattern, Pattern):
                raise SpecError(f"{pattern!r} is not a pattern; combine Causal(), SlidingWindow(...) and the like")
            flat.extend(pattern.parts if isinstance(pattern, cls) else [pattern])
        parts = _without_idle(_merge_pairs(flat, union=cls.union), union=cls.union)
        if not parts:
            raise SpecError(f"{cls.__name__} needs at least one pattern")
        return parts[0] if len(parts) == 1 else cls(parts=tuple(parts))

    @classmethod
    def from_fields(cls, fields: Any) -> Any:
        """Build from decoded JSON, normalised like any other combination."""
        if set(fields) != {"parts"} or not isinstance(fields["parts"], tuple):
            raise SpecError(f"{cls.__name__} has one field, 'parts', a list of patterns; got {sorted(fields)}")
        return cls.of(fields["parts"])

    def __repr__(self) -> str:
        shown = (f"({part!r})" if isinstance(part, Combined) else repr(part) for part in self.parts)
        return f" {self.symbol} ".join(shown)

    def allowed(self, query_positions: Any, key_positions: Any, *, kv_len: int, head: int = 0) -> Any:  # noqa: D102
        first, *rest = (p.allowed(query_positions, key_positions, kv_len=kv_len, head=head) for p in self.parts)
        for other in rest:
            first = first | other if self.union else first & other
        return first

    def key_ranges(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> list[KeyRange]:  # noqa: D102
        layouts = [part.key_ranges(start, stop, kv_len=kv_len, head=head) for part in self.parts]
        return merge(layouts, max if self.union else min)

    @property
    def depends_on_kv_len(self) -> bool:  # noqa: D102
        return any(part.depends_on_kv_len for part in self.parts)

    @property
    def unit(self) -> int:  # noqa: D102
        return math.lcm(*(part.unit for part in self.parts))

    def in_units(self, size: int, *, kv_len: int) -> Pattern | None:  # noqa: D102
        parts = [part.in_units(size, kv_len=kv_len) for part in self.parts]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else self.of(tuple(known))

    @property
    def repeat(self) -> Repeat | None:  # noqa: D102
        repeats = [part.repeat for part in self.parts]
        known = [one for one in repeats if one is not None]
        if len(known) < len(repeats):
            return None
        return Repeat(math.lcm(*(one.step for one in known)), max(one.start for one in known))

    @property
    def per_head(self) -> bool:  # noqa: D102
        return any(part.per_head for part in self.parts)

    @property
    def table_heads(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(count for part in self.parts for count in part.table_heads)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AllOf(Combined):
    """What every part allows; written ``a & b``.

    Attributes:
        parts: The patterns.
    """

    symbol: ClassVar[str] = "&"
    union: ClassVar[bool] = False

    def neighbours(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> Neighbours:  # noqa: D102
        import numpy as np

        shortest = min(self.parts, key=_degree)  # alone: a list of another part may be any number of times as long
        keys, every = shortest.neighbours(start, stop, kv_len=kv_len, head=head)
        queries, seen = np.arange(start, stop)[:, None], keys >= 0
        for part in self.parts:
            if part is not shortest:
                seen = seen & part.allowed(queries, keys, kv_len=kv_len, head=head)[:, 0]
        return Neighbours(distinct(np.where(seen, keys, -1)), every)

    @property
    def degree(self) -> int | None:  # noqa: D102
        return min(self.parts, key=_degree).degree

    @property
    def is_causal(self) -> bool:  # noqa: D102
        return any(part.is_causal for part in self.parts)

    @property
    def reach(self) -> Reach:  # noqa: D102
        bounded = [part.reach for part in self.parts if part.reach.left is not None]
        return min(bounded, key=Reach.size, default=Reach(left=None))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AnyOf(Combined):
    """What any part allows; written ``a | b``.

    Attributes:
        parts: The patterns.
    """

    symbol: ClassVar[str] = "|"
    union: ClassVar[bool] = True

    def neighbours(self, start: int, stop: int, *, kv_len: int, head: int = 0) -> Neighbours:  # noqa: D102
        import numpy as np

        parts = [part.neighbours(start, stop, kv_len=kv_len, head=head) for part in self.parts]
        keys = distinct(np.concatenate([part.keys for part in parts], axis=-1))
        return Neighbours(keys, np.any([part.every for part in parts], axis=0))

    @property
    def degree(self) -> int | None:  # noqa: D102
        degrees = [part.degree for part in self.parts if part.degree is not None]
        return sum(degrees) if len(degrees) == len(self.parts) else None

    @property
    def is_causal(self) -> bool:  # noqa: D102
        return all(part.is_causal for part in self.parts)

    @property
    def reach(self) -> Reach:  # noqa: D102
        lefts = [part.reach.left for part in self.parts]
        if None in lefts:
            return Reach(left=None)
        return Reach(left=max(left for left in lefts if left is not None), first=max(p.reach.first for p in self.parts))


def _degree(pattern: Pattern) -> float:
    return math.inf if pattern.degree is None else pattern.degree


def _merge_pairs(patterns: Sequence[Pattern], *, union: bool) -> list[Pattern]:
    """Replace pairs that one primitive can express, until none is left; then sort."""
    merged: list[Pattern] = []
    for pattern in patterns:
        for index, other in enumerate(merged):
            one = other if other == pattern else other.merged(pattern, union=union)
            if one is not None:
                merged[index] = one
                break
        else:
            merged.append(pattern)
    return sorted(merged, key=repr)


def _without_idle(parts: Sequence[Pattern], *, union: bool) -> list[Pattern]:
    """Drop what another part makes idle: ``a & (a | b)`` and ``a | (a & b)`` are a; Full is everything."""
    needed = list(parts)
    for part in parts:
        others = tuple(other for other in needed if other is not part)
        if others and (_within(part, AnyOf(parts=others)) if union else _within(AllOf(parts=others), part)):
            needed.remove(part)
    return needed


def _within(inner: Pattern, outer: Pattern) -> bool:
    """Whether the parts show that ``inner`` allows no pair that ``outer`` forbids."""
    if inner == outer or outer == Full():
        return True
    if isinstance(outer, AllOf):
        return all(_within(inner, part) for part in outer.parts)
    if isinstance(inner, AnyOf):
        return all(_within(part, outer) for part in inner.parts)
    if isinstance(outer, AnyOf) and any(_within(inner, part) for part in outer.parts):
        return True
    if isinstance(inner, AllOf) and any(_within(part, outer) for part in inner.parts):
        return True
    return outer.merged(inner, union=True) == outer
