"""`&` and `|`: equal sets compare equal, the algebra of patterns is that of their pairs, and their reach is enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from polyhead.spec import (
    AllOf,
    AnyOf,
    Band,
    BigBird,
    Causal,
    Chunked,
    Full,
    Global,
    Links,
    Pattern,
    RandomLinks,
    SlidingWindow,
)
from polyhead.spec.ranges import Reach
from tests.pictures import grid
from tests.strategies import bands, chunks, globals_, patterns, primitives, sizes, small

Kind = type[AllOf] | type[AnyOf]

for_examples = pytest.mark.parametrize("examples", [150, pytest.param(1500, marks=pytest.mark.slow)])
"""How many random examples: a quick look every time, a long one now and then."""


@for_examples
def test_pairs_combine_as_booleans_do(examples: int) -> None:
    @settings(max_examples=examples)
    @given(patterns(), patterns(), st.integers(1, 10))
    def holds(a: Pattern, b: Pattern, length: int) -> None:
        left, right = grid(a, length, length), grid(b, length, length)
        assert (grid(a & b, length, length) == (left & right)).all()
        assert (grid(a | b, length, length) == (left | right)).all()

    holds()


@for_examples
@pytest.mark.parametrize(("kind", "other"), [(AllOf, AnyOf), (AnyOf, AllOf)])
def test_a_combination_is_the_same_in_any_order_and_grouping(kind: Kind, other: Kind, examples: int) -> None:
    # Where tokens at both ends are global, neither set need contain the other, no part says what the two have in
    # common, and a part dropped for it can no longer join another: there the order shows.
    simple = primitives(st.builds(Global, first=st.integers(1, 4)))
    parts = simple | st.lists(simple, min_size=2, max_size=3).map(other.of)

    @settings(max_examples=examples)
    @given(parts, parts, parts)
    def holds(a: Pattern, b: Pattern, c: Pattern) -> None:
        assert kind.of([a, b]) == kind.of([b, a])
        assert kind.of([kind.of([a, b]), c]) == kind.of([a, kind.of([b, c])]) == kind.of([c, a, b])

    holds()


@for_examples
def test_repeating_and_absorbing_change_nothing(examples: int) -> None:
    @settings(max_examples=examples)
    @given(patterns(), patterns())
    def holds(a: Pattern, b: Pattern) -> None:
        assert a & a == a | a == a
        assert a & (a | b) == a
        assert a | (a & b) == a

    holds()


@given(patterns())
def test_full_is_neutral_in_and_and_absorbs_in_or(pattern: Pattern) -> None:
    assert pattern & Full() == Full() & pattern == pattern
    assert pattern | Full() == Full() | pattern == Full()


@given(bands(), bands())
def test_bands_combine_to_a_band(a: Band, b: Band) -> None:
    assert isinstance(a & b, Band)
    assert isinstance(a | b, Band)


@given(chunks(), chunks())
def test_chunks_of_one_size_combine_to_chunks(a: Chunked, b: Chunked) -> None:
    assert isinstance(a & b, Chunked) == (a.size == b.size)
    assert isinstance(a | b, Chunked) == (a.size == b.size)


@given(globals_(), globals_())
def test_global_tokens_unite_to_global_tokens(a: Global, b: Global) -> None:
    assert a | b == Global(first=max(a.first, b.first), last=max(a.last, b.last))


@given(primitives(), primitives())
def test_a_part_that_another_makes_idle_is_dropped(a: Pattern, b: Pattern) -> None:
    """Also where the part that makes it idle is larger than the one that it names."""
    wide = SlidingWindow(left=9, right=9)
    narrow = SlidingWindow(left=3, right=3)
    assert (a & b & narrow) | (a & b) == a & b
    assert (a & narrow) | wide == wide
    assert (a | wide) & narrow == narrow


def test_what_is_written_differently_and_is_the_same_compares_equal() -> None:
    assert Causal() & SlidingWindow(left=3) == SlidingWindow.causal(4)
    assert Chunked(size=4) & Causal() == Causal() & Chunked(size=4) & Full()
    assert hash(Chunked(size=4) & Causal()) == hash(Causal() & Chunked(size=4))
    assert BigBird(num_random=0, num_global=0, radius=2) == SlidingWindow.symmetric(2)
    assert Causal() & Chunked(size=4) != Causal() | Chunked(size=4)


def test_parts_lie_flat_and_sorted() -> None:
    pattern = (Global(first=1) | Chunked(size=2)) | (Causal() | Global(first=3))
    assert pattern.parts == (Causal(), Chunked(size=2), Global(first=3))
    nested = (Causal() & Chunked(size=2)) | Global(first=1)
    assert repr(nested) == "(Causal() & Chunked(size=2)) | Global(first=1)"


# --- how far back a query looks


SINK_AND_WINDOW = SlidingWindow.causal(3) | Global(first=2)


@pytest.mark.parametrize(
    ("pattern", "reach"),
    [
        # an intersection looks no further back than its nearest part
        (Chunked(size=4) & Causal(), Reach(left=3)),
        (Chunked(size=4) & SlidingWindow(left=9), Reach(left=3)),
        (RandomLinks(per_query=2, seed=0) & SlidingWindow(left=5), Reach(left=5)),
        (RandomLinks(per_query=2, seed=0) & Causal(), Reach(left=None)),
        (Global(first=1, last=2) & SlidingWindow(left=5), Reach(left=5)),
        (Global(first=3) & Causal(), Reach(left=0, first=3)),
        (Global(first=9) & SlidingWindow(left=5), Reach(left=5)),
        # a union looks as far back as its furthest part, and keeps what any keeps
        (SlidingWindow(left=2, right=0) | Chunked(size=6), Reach(left=5)),
        (SlidingWindow.causal(3) | Causal() & Chunked(size=6), Reach(left=5)),
        (SINK_AND_WINDOW, Reach(left=2, first=2)),
        (SINK_AND_WINDOW | Causal() & Chunked(size=5) | Global(first=1), Reach(left=4, first=2)),
        (SINK_AND_WINDOW | RandomLinks(per_query=1, seed=0), Reach(left=None)),
        (BigBird(), Reach(left=None)),
        (BigBird(num_random=0, radius=3), Reach(left=3, first=1)),
        # nested
        (SINK_AND_WINDOW & Causal(), Reach(left=2, first=2)),
        (SINK_AND_WINDOW & Chunked(size=8), Reach(left=2, first=2)),
        (SINK_AND_WINDOW & SlidingWindow(left=3), Reach(left=3)),
        ((Causal() | Chunked(size=2)) & SINK_AND_WINDOW, Reach(left=2, first=2)),
    ],
    ids=repr,
)
def test_the_reach_of_a_combination(pattern: Pattern, reach: Reach) -> None:
    assert pattern.reach == reach


near = st.builds(Band, left=small, right=st.none() | small) | chunks() | st.builds(Global, first=sizes)
"""Patterns whose past is bounded."""


@for_examples
def test_a_query_sees_nothing_of_the_past_beyond_its_reach(examples: int) -> None:
    @settings(max_examples=examples)
    @given(patterns(near), st.just(Causal()) | patterns())
    def holds(bounded: Pattern, other: Pattern) -> None:
        pattern = bounded & other & Causal()
        left, first = pattern.reach
        assert left is not None
        query, key = np.indices((24, 24))
        kept = (key >= query - left) | (key < first)
        for head in range(min(pattern.table_heads, default=2)):
            assert not (grid(pattern, 24, 24, head=head) & ~kept).any()

    holds()


def test_what_treats_runs_alike_is_a_pattern_of_runs() -> None:
    links = st.builds(
        RandomLinks, per_query=st.integers(1, 3), seed=st.integers(0, 5), block=st.just(3), span=st.just("all")
    )
    table = st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4)
    parts = (
        links
        | st.builds(lambda rows: Links(table=(tuple(map(tuple, rows)),), block=3), table)
        | st.builds(lambda size, left, right: Chunked(size=3 * size, left=left, right=right), sizes, small, small)
        | st.builds(lambda first: Global(first=3 * first), st.integers(1, 3))
    )
    at_both_ends = st.builds(lambda first, last: Global(first=3 * first, last=3 * last), small, st.integers(1, 2))

    @settings(max_examples=150)
    @given(patterns(parts), st.integers(1, 14))
    def holds(pattern: Pattern, length: int) -> None:
        units = pattern.in_units(3, kv_len=length)
        assert units is not None
        runs = grid(units, -(-length // 3), -(-length // 3))
        assert (grid(pattern, length, length) == runs.repeat(3, 0).repeat(3, 1)[:length, :length]).all()

    holds()
    given(patterns(parts | at_both_ends), st.integers(1, 5).map(lambda n: 3 * n))(holds.hypothesis.inner_test)()


@pytest.mark.parametrize(
    "pattern",
    [
        Causal(),
        SlidingWindow.symmetric(4),
        Chunked(size=4),
        Global(first=4),
        Global(first=3, last=3),
        RandomLinks(per_query=1, seed=0, block=3),
        RandomLinks(per_query=1, seed=0, span="all"),
        Chunked(size=3) & Causal(),
    ],
)
def test_what_parts_a_run_is_no_pattern_of_runs(pattern: Pattern) -> None:
    assert pattern.in_units(3, kv_len=10) is None
    assert pattern.in_units(1, kv_len=10) == pattern
