"""Each primitive pattern against a picture drawn by hand, and what a pattern says of itself against its pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from polyhead.errors import SpecError
from polyhead.spec import AllOf, AnyOf, Band, Causal, Chunked, Full, Global, Links, Pattern, RandomLinks, SlidingWindow
from polyhead.spec.ranges import BlockState, KeyRange, Reach
from tests.pictures import drawn, grid, lines
from tests.strategies import bands, chunks, globals_, patterns, primitives

PICTURES = {
    "full": (
        Full(),
        """
        #####
        #####
        #####
        """,
    ),
    "causal": (
        Causal(),
        """
        #....
        ##...
        ###..
        ####.
        #####
        #####
        """,
    ),
    "window of the last three": (
        SlidingWindow.causal(3),
        """
        #.....
        ##....
        ###...
        .###..
        ..###.
        ...###
        """,
    ),
    "window of one on either side": (
        SlidingWindow.symmetric(1),
        """
        ##....
        ###...
        .###..
        ..###.
        ...###
        ....##
        """,
    ),
    "window of two earlier and one later": (
        SlidingWindow(left=2, right=1),
        """
        ##....
        ###...
        ####..
        .####.
        ..####
        ...###
        """,
    ),
    "window without an end to the right": (
        SlidingWindow(left=1),
        """
        #####
        #####
        .####
        ..###
        ...##
        """,
    ),
    "itself alone": (
        SlidingWindow(left=0, right=0),
        """
        #...
        .#..
        ..#.
        ...#
        """,
    ),
    "chunks of three": (
        Chunked(size=3),
        """
        ###.....
        ###.....
        ###.....
        ...###..
        ...###..
        ...###..
        ......##
        ......##
        """,
    ),
    "chunks of two with the chunk before": (
        Chunked(size=2, left=1),
        """
        ##....
        ##....
        ####..
        ####..
        ..####
        ..####
        """,
    ),
    "chunks of two with two chunks after": (
        Chunked(size=2, right=2),
        """
        ######..
        ######..
        ..######
        ..######
        ....####
        """,
    ),
    "first two global": (
        Global(first=2),
        """
        #####
        #####
        ##...
        ##...
        ##...
        """,
    ),
    "first and last global": (
        Global(first=1, last=1),
        """
        #####
        #...#
        #...#
        #...#
        #####
        """,
    ),
    "last two global": (
        Global(first=0, last=2),
        """
        ...##
        ...##
        ...##
        #####
        #####
        """,
    ),
    "LLaMA 4's chunks": (
        Chunked(size=3) & Causal(),
        """
        #.....
        ##....
        ###...
        ...#..
        ...##.
        ...###
        """,
    ),
    "window and a sink token": (
        SlidingWindow.causal(2) | Global(first=1) & Causal(),
        """
        #.....
        ##....
        ###...
        #.##..
        #..##.
        #...##
        """,
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_pattern_looks_as_it_was_drawn(name: str) -> None:
    pattern, picture = PICTURES[name]
    expected = lines(picture)
    assert drawn(pattern, len(expected), len(expected[0])) == expected


def test_positions_decide_and_not_places() -> None:
    queries, keys = np.array([7, 0, 3]), np.array([[8, 3, 5, 0], [0, 1, 2, 3]])
    seen = Causal().allowed(queries, keys, kv_len=4)
    assert seen.tolist() == [
        [[False, True, True, True], [False, False, False, True], [False, True, False, True]],
        [[True, True, True, True], [True, False, False, False], [True, True, True, True]],
    ]


@given(
    patterns(), st.lists(st.integers(-2, 20), max_size=6), st.lists(st.integers(0, 20), max_size=6), st.integers(0, 1)
)
def test_numpy_and_torch_positions_agree(pattern: Pattern, queries: list[int], keys: list[int], head: int) -> None:
    if head >= min(pattern.table_heads, default=2):
        head = 0
    arrays = np.array(queries, dtype=np.int64), np.array(keys, dtype=np.int64)
    ours = pattern.allowed(*arrays, kv_len=12, head=head)
    theirs = pattern.allowed(*map(torch.from_numpy, arrays), kv_len=12, head=head)
    assert ours.dtype == np.bool_
    assert theirs.dtype == torch.bool
    assert ours.shape == theirs.shape == (len(queries), len(keys))
    assert (ours == theirs.numpy()).all()


@given(patterns(), st.integers(1, 12))
def test_a_causal_pattern_lets_no_query_see_a_later_key(pattern: Pattern, length: int) -> None:
    if pattern.is_causal:
        assert not np.triu(grid(pattern, length, length), k=1).any()


@given(primitives())
def test_a_primitive_that_is_not_causal_shows_a_later_key(pattern: Pattern) -> None:
    if not pattern.is_causal and not isinstance(pattern, RandomLinks):  # a draw over all may miss the future
        heads = range(max(pattern.table_heads, default=1))
        assert any(np.triu(grid(pattern, 40, 40, head=head), k=1).any() for head in heads)


# --- how far back a query looks


REACHES: dict[str, tuple[Pattern, Reach, str]] = {
    "full": (Full(), Reach(left=None), "#########"),
    "causal": (Causal(), Reach(left=None), "#########"),
    "window of the last three": (SlidingWindow.causal(3), Reach(left=2), "......###"),
    "window of two earlier and any later": (SlidingWindow(left=2), Reach(left=2), "......###"),
    "window of three later": (SlidingWindow(right=3), Reach(left=None), "#########"),
    "itself alone": (SlidingWindow(left=0, right=0), Reach(left=0), "........#"),
    "chunks of three": (Chunked(size=3), Reach(left=2), "......###"),
    "chunks of three with the chunk before": (Chunked(size=3, left=1, right=4), Reach(left=5), "...######"),
    "chunks of one with two before": (Chunked(size=1, left=2), Reach(left=2), "......###"),
    "first two global": (Global(first=2), Reach(left=0, first=2), "##......#"),
    "last one global": (Global(first=1, last=1), Reach(left=None), "#########"),
    "random links": (RandomLinks(per_query=1, seed=0), Reach(left=None), "#########"),
    "given links": (Links(table=(((0,), (0,)),)), Reach(left=None), "#########"),
}


@pytest.mark.parametrize("name", REACHES)
def test_what_the_query_at_8_needs_of_the_past_is_as_it_was_drawn(name: str) -> None:
    pattern, reach, picture = REACHES[name]
    assert pattern.reach == reach
    assert "".join(".#"[int(is_within(reach, 8, key))] for key in range(9)) == picture
    seen = grid(pattern & Causal(), 9, 9)[8]
    assert not any(seen[key] and picture[key] == "." for key in range(9))


def is_within(reach: Reach, query: int, key: int) -> bool:
    return reach.left is None or key >= query - reach.left or key < reach.first


@given(bands() | chunks() | globals_())
def test_the_reach_of_a_simple_pattern_is_no_longer_than_it_must_be(pattern: Pattern) -> None:
    left, first = pattern.reach
    if left is not None:
        seen = grid(pattern & Causal(), 40, 40)
        assert left == 0 or any(seen[query, query - left] for query in range(30, 40))
        assert first == 0 or seen[39, first - 1]


@pytest.mark.parametrize(
    ("reach", "size"), [(Reach(left=None), math.inf), (Reach(left=0), 1), (Reach(left=3, first=2), 6)]
)
def test_how_many_keys_a_query_sees_at_most(reach: Reach, size: float) -> None:
    assert reach.size() == size


# --- what a pattern depends on


def test_no_token_past_the_end_is_global_where_only_first_ones_are() -> None:
    """A cached query stands past the keys that there are, and must see what it would see in the whole text."""
    pattern = Global(first=2)
    seen = pattern.allowed(np.array([1, 4, 7]), np.arange(9), kv_len=5)
    assert ["".join(".#"[int(pair)] for pair in row) for row in seen] == ["#########", "##.......", "##......."]
    assert pattern.key_ranges(5, 8, kv_len=5) == [KeyRange(0, 2, BlockState.FULL)]
    assert pattern.key_ranges(4, 6, kv_len=5) == [KeyRange(0, 2, BlockState.FULL)]
    assert Global(first=2, last=1).key_ranges(5, 8, kv_len=5) == [KeyRange(0, 5, BlockState.FULL)]


@given(patterns(), st.integers(1, 12), st.integers(1, 12))
def test_what_a_query_past_the_end_sees_does_not_depend_on_the_end(pattern: Pattern, kv_len: int, more: int) -> None:
    if not pattern.depends_on_kv_len:
        queries, keys = np.arange(kv_len, kv_len + more), np.arange(kv_len + more)
        short, long = (pattern.allowed(queries, keys, kv_len=length) for length in (kv_len, kv_len + more))
        assert (short == long).all()


@given(patterns(), st.integers(1, 12), st.integers(1, 12))
def test_a_pattern_depends_on_the_length_only_if_it_says_so(pattern: Pattern, length: int, more: int) -> None:
    if not pattern.depends_on_kv_len:
        longer = grid(pattern, length, length + more)
        assert (grid(pattern, length, length) == longer[:, :length]).all()


@pytest.mark.parametrize("pattern", [Global(first=0, last=1), RandomLinks(per_query=1, seed=0, span="all")])
@pytest.mark.parametrize("combine", [lambda p: p, lambda p: p & Causal(), lambda p: p | SlidingWindow(left=1, right=1)])
def test_a_pattern_that_depends_on_the_length_says_so(pattern: Pattern, combine: object) -> None:
    whole = combine(pattern)
    assert whole.depends_on_kv_len
    assert (grid(whole, 6, 6) != grid(whole, 6, 12)[:, :6]).any()


@given(patterns())
def test_heads_differ_only_if_the_pattern_says_so(pattern: Pattern) -> None:
    if not pattern.per_head:
        assert pattern.table_heads == ()
        assert (grid(pattern, 10, 10, head=0) == grid(pattern, 10, 10, head=1)).all()


def test_a_combination_lists_the_head_counts_of_its_tables() -> None:
    one, two, three = (Links(table=(((0,),),) * heads) for heads in (1, 2, 3))
    assert [one.table_heads, two.table_heads, (two & Causal() | three).table_heads] == [(), (2,), (2, 3)]
    assert not (one | Causal()).per_head
    assert (two | Causal()).per_head


def test_the_names_of_a_band() -> None:
    assert Full() == Band()
    assert Causal() == Band(right=0) == SlidingWindow(right=0)
    assert SlidingWindow.causal(4096) == Band(left=4095, right=0)
    assert SlidingWindow.symmetric(1) == Band(left=1, right=1)
    assert SlidingWindow is Band


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Band(left=-1), "left=-1 is not allowed; give a whole number of at least 0"),
        (lambda: Band(right=1.5), "right=1.5 is not allowed"),
        (lambda: Band.causal(0), "size=0 is not allowed; give a whole number of at least 1"),
        (lambda: Band.symmetric(-1), "left=-1 is not allowed"),
        (lambda: Chunked(size=0), "size=0 is not allowed; give a whole number of at least 1"),
        (lambda: Chunked(size=2, left=-1), "left=-1 is not allowed"),
        (lambda: Chunked(size=2, right=None), "right=None is not allowed"),
        (lambda: Global(first=-1), "first=-1 is not allowed"),
        (lambda: Global(first=0), r"Global\(first=0, last=0\) makes no token global; give first or last at least 1"),
        (lambda: AllOf.of([]), "AllOf needs at least one pattern"),
        (lambda: AnyOf.of([Causal(), "causal"]), r"'causal' is not a pattern; combine Causal\(\)"),
        (
            lambda: AllOf.from_fields({"parts": 3}),
            "AllOf has one field, 'parts', a list of patterns; got \\['parts'\\]",
        ),
        (lambda: AnyOf.from_fields({"part": ()}), "AnyOf has one field, 'parts', a list of patterns; got \\['part'\\]"),
    ],
)
def test_a_pattern_that_says_nothing_is_refused(build: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


@pytest.mark.parametrize("operator", [lambda p: p & 1, lambda p: p | None])
def test_only_patterns_combine(operator: object) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        operator(Causal())


def test_the_base_answers_nothing() -> None:
    with pytest.raises(NotImplementedError):
        Pattern().allowed(np.arange(2), np.arange(2), kv_len=2)
    with pytest.raises(NotImplementedError):
        Pattern().key_ranges(0, 1, kv_len=2)
