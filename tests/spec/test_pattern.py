"""Each primitive pattern against a picture drawn by hand, and what a pattern says of itself against its pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from polyhead.errors import SpecError
from polyhead.spec import AllOf, AnyOf, Band, Causal, Chunked, Full, Global, Links, Pattern, RandomLinks, SlidingWindow
from tests.pictures import drawn, grid, lines
from tests.strategies import patterns, primitives

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
