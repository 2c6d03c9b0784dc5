"""Each query's list of keys against the pairs themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from polyhead.spec import BigBird, Causal, Chunked, Full, Global, Links, Pattern, RandomLinks, SlidingWindow
from polyhead.spec.neighbours import distinct
from tests.pictures import grid
from tests.spec.test_ranges import blocks, for_examples, heads_of, lengths
from tests.strategies import patterns


@for_examples
def test_a_list_holds_what_its_query_sees_once_and_no_more_than_the_degree(examples: int) -> None:
    @settings(max_examples=examples)
    @given(patterns(), blocks, lengths)
    def holds(pattern: Pattern, block: tuple[int, int], kv_len: int) -> None:
        for head in heads_of(pattern):
            keys, every = pattern.neighbours(*block, kv_len=kv_len, head=head)
            assert every.all() or (pattern.degree is not None and keys.shape[1] <= pattern.degree)
            seen = grid(pattern, block[1], kv_len, head=head)[block[0] :]
            for row in np.flatnonzero(~every):
                listed = keys[row][keys[row] >= 0]
                assert sorted(listed) == np.flatnonzero(seen[row]).tolist()

    holds()


@pytest.mark.parametrize(
    ("pattern", "degree"),
    [
        (Full(), None),
        (Causal(), None),
        (SlidingWindow(left=3, right=1), 5),
        (Chunked(size=4, left=1), 8),
        (Global(first=2, last=1), 3),
        (RandomLinks(per_query=3, seed=0), 3),
        (RandomLinks(per_query=3, seed=0, block=4), 12),
        (Links(table=(((0, 1), (), (2,)),)), 2),
        (Links(table=((),)), 0),
        (Causal() & SlidingWindow(left=3, right=1), 4),
        (Causal() & Chunked(size=4), 4),
        (Global(first=2) | SlidingWindow.symmetric(1), 5),
        (Global(first=2) | Causal(), None),
        (BigBird(radius=1, num_global=2, num_random=3), 8),
    ],
    ids=str,
)
def test_how_many_keys_a_query_sees_at_most(pattern: Pattern, degree: int | None) -> None:
    assert pattern.degree == degree


@pytest.mark.parametrize(
    ("pattern", "every"),
    [
        (Global(first=2), [0, 1]),
        (Global(first=1, last=2), [0, 8, 9]),
        (BigBird(num_global=1), [0]),
        (Causal(), range(10)),
        (SlidingWindow.symmetric(1), []),
    ],
    ids=str,
)
def test_only_queries_that_see_everything_have_no_list(pattern: Pattern, every: list[int]) -> None:
    assert np.flatnonzero(pattern.neighbours(0, 10, kv_len=10).every).tolist() == list(every)


def test_queries_before_the_first_key_may_have_lists() -> None:
    keys, _ = SlidingWindow.symmetric(1).neighbours(-3, 1, kv_len=5)
    assert keys.tolist() == [[-1, -1], [-1, -1], [0, -1], [0, 1]]


def test_a_link_given_twice_is_one_and_one_past_the_last_key_none() -> None:
    keys, _ = Links(table=(((3, 1, 3), (7,), (2, 2, 2)),)).neighbours(0, 4, kv_len=5)
    assert keys.tolist() == [[1, 3], [-1, -1], [2, -1], [-1, -1]]


def test_lists_are_no_wider_than_the_longest_needs() -> None:
    assert distinct(np.array([[4, -1, 4, 2], [5, 5, 5, -1]])).tolist() == [[2, 4], [5, -1]]
    assert distinct(np.full((2, 3), -1)).shape == (2, 0)
