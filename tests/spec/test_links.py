"""Links, given as a table or drawn from a seed: pictures, and what a draw promises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, strategies as st

from polyhead.errors import SpecError
from polyhead.spec import BigBird, Causal, Chunked, Global, Links, Pattern, RandomLinks, SlidingWindow
from tests.pictures import drawn, grid, lines
from tests.strategies import random_links

TABLES = {
    "one table for all heads; queries past its end have no link": (
        Links(table=(((0,), (0, 3), (), (2, 1)),)),
        [
            """
            #....
            #..#.
            .....
            .##..
            .....
            """
        ]
        * 2,
    ),
    "a table for each head": (
        Links(table=(((1,), (0,)), ((2,), (2, 0)))),
        [
            """
            .#.
            #..
            """,
            """
            ..#
            #.#
            """,
        ],
    ),
    "blocks of two see whole blocks, as far as there are keys": (
        Links(table=(((0,), (0, 2)),), block=2),
        [
            """
            ##...
            ##...
            ##..#
            ##..#
            .....
            """
        ],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_looks_as_it_was_drawn(name: str) -> None:
    pattern, pictures = TABLES[name]
    for head, picture in enumerate(pictures):
        expected = lines(picture)
        assert drawn(pattern, len(expected), len(expected[0]), head=head) == expected


# What seed 3 draws, in heads 0 and 1. These must never change: a model is trained on them.
DRAWS = {
    "two in the past": (
        RandomLinks(per_query=2, seed=3),
        """
        #....... #.......
        ##...... ##......
        #.#..... #.#.....
        #.#..... #.#.....
        .#.#.... .#.#....
        ..#..#.. ..#.#...
        ..#...#. ..##....
        ...##... ..#...#.
        """,
    ),
    "two anywhere": (
        RandomLinks(per_query=2, seed=3, span="all"),
        """
        .#....#. #......#
        #...#... #...#...
        ..#....# ...#...#
        #...#... ..#.#...
        ...##... .#..#...
        ...#..#. #...#...
        #......# .#..#...
        ...##... ..#...#.
        """,
    ),
    "a block of two in the past": (
        RandomLinks(per_query=1, seed=3, block=2),
        """
        #....... #.......
        ##...... ##......
        ##...... ##......
        ##...... ##......
        ..##.... ..##....
        ..##.... ..##....
        ##...... ....##..
        ##...... ....##..
        """,
    ),
    "two blocks of two anywhere": (
        RandomLinks(per_query=2, seed=3, block=2, span="all"),
        """
        ..####.. ##....##
        ..####.. ##....##
        ##..##.. ##..##..
        ##..##.. ##..##..
        ##....## ..##..##
        ##....## ..##..##
        ##..##.. ##..##..
        ##..##.. ##..##..
        """,
    ),
    "BigBird": (
        BigBird(seed=1),
        """
        ######## ########
        ###..... ###.....
        ####.... ####....
        #.###... #.###...
        #..###.. ##.###..
        #...###. #...###.
        #...#### #....###
        #.....## #.....##
        """,
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_stays_what_it_was(name: str) -> None:
    pattern, picture = DRAWS[name]
    both = zip(*(drawn(pattern, 8, 8, head=head) for head in (0, 1)), strict=True)
    assert [" ".join(row) for row in both] == lines(picture)


@given(random_links(), st.integers(1, 40), st.integers(0, 3))
def test_links_are_distinct_and_as_many_as_the_range_has_room_for(links: RandomLinks, length: int, head: int) -> None:
    size = links.block or 1
    for query, row in enumerate(links.links(np.arange(length), kv_len=length, head=head).tolist()):
        choices = query // size + 1 if links.span == "past" else -(-length // size)
        given = [unit for unit in row if unit >= 0]
        assert len(given) == len(set(given)) == min(links.per_query, choices)
        assert max(given) < choices


@given(random_links(), st.integers(1, 40), st.integers(1, 20))
def test_a_draw_depends_on_the_position_alone(links: RandomLinks, length: int, step: int) -> None:
    whole = links.links(np.arange(length), kv_len=length)
    some = np.arange(0, length, step)[::-1]
    assert (links.links(some, kv_len=length) == whole[some]).all()
    if links.span == "past":
        assert (links.links(some, kv_len=length + 7) == whole[some]).all()


@given(random_links(), st.integers(1, 30))
def test_the_past_is_never_later_than_the_query_also_inside_a_block(links: RandomLinks, length: int) -> None:
    later = np.triu(grid(links, length, length), k=1)
    assert links.is_causal == (links.span == "past")
    assert not (links.is_causal and later.any())


def test_heads_and_seeds_draw_differently() -> None:
    draws = {
        grid(RandomLinks(per_query=2, seed=seed), 30, 30, head=head).tobytes()
        for seed in (0, 1, 2**64 - 1)
        for head in range(4)
    }
    assert len(draws) == 12


def test_draws_are_spread_evenly_over_the_whole_range() -> None:
    links = RandomLinks(per_query=1, seed=0, span="all")
    counts = np.bincount(links.links(np.arange(8000), kv_len=8)[:, 0], minlength=8)
    assert counts.min() > 900  # 1000 each, with a standard deviation of 30
    assert counts.max() < 1100


def test_positions_before_the_sequence_have_no_link() -> None:
    for pattern in (RandomLinks(per_query=2, seed=0, span="all"), Links(table=(((0,), (1,)),))):
        seen = pattern.allowed(np.array([-1, -2, 0]), np.arange(3), kv_len=3)
        assert seen.any(axis=1).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("table", "block", "causal"),
    [
        ((((0,), (0, 1)),), None, True),
        ((((1,), (0,)),), None, False),
        ((((0,), (0,)), ((0,), (2,))), None, False),  # the second head sees ahead
        ((((), (0,)),), 2, True),
        ((((0,),),), 2, False),  # inside its own block the first query sees the second key
        ((((),),), 2, True),
    ],
)
def test_a_table_is_causal_if_no_query_of_any_head_sees_ahead(
    table: tuple[tuple[tuple[int, ...], ...], ...], block: int | None, causal: bool
) -> None:
    links = Links(table=table, block=block)
    assert links.is_causal == causal
    assert causal == (not any(np.triu(grid(links, 8, 8, head=head), k=1).any() for head in range(len(table))))


def test_a_table_may_come_in_lists() -> None:
    assert Links(table=[[[0], (1, 2)]]) == Links(table=(((0,), (1, 2)),))


def test_bigbird_is_the_union_of_its_parts() -> None:
    links = RandomLinks(per_query=2, seed=5)
    assert BigBird(radius=3, num_global=2, num_random=2, seed=5) == SlidingWindow.symmetric(3) | Global(first=2) | links
    by_block = RandomLinks(per_query=1, seed=5, block=4, span="all")
    assert BigBird(block=4, seed=5, span="all") == Chunked(size=4, left=1, right=1) | Global(first=4) | by_block
    assert BigBird(num_global=0, num_random=0) == SlidingWindow.symmetric(1)
    assert (BigBird() & Causal()).is_causal
    assert not BigBird().is_causal


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomLinks(per_query=0, seed=0), "per_query=0 is not allowed; give a whole number of at least 1"),
        (lambda: RandomLinks(per_query=1, seed=-1), "seed=-1 is not allowed"),
        (lambda: RandomLinks(per_query=1, seed=0, block=0), "block=0 is not allowed"),
        (lambda: RandomLinks(per_query=1, seed=0, span="future"), "span='future' is not allowed; use 'past' or 'all'"),
        (lambda: Links(table=()), r"table=\(\) has no head; give one table for all heads, or one for each"),
        (lambda: Links(table=((0, 1),)), r"table must be nested three deep: table\[head\]\[query\] lists that query"),
        (lambda: Links(table=5), "table must be nested three deep"),
        (lambda: Links(table=(((-1,),),)), "table=-1 is not allowed; give a whole number of at least 0"),
        (lambda: Links(table=(((0,),),), block=0), "block=0 is not allowed"),
        (lambda: BigBird(radius=-1), "left=-1 is not allowed"),
        (lambda: BigBird(num_global=-1), "num_global=-1 is not allowed"),
        (lambda: BigBird(num_random=-1), "num_random=-1 is not allowed"),
        (lambda: BigBird(block=0), "block=0 is not allowed"),
    ],
)
def test_links_that_join_nothing_are_refused(build: Callable[[], Pattern], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


def test_the_base_answers_nothing() -> None:
    from polyhead.spec.links import Linked

    with pytest.raises(NotImplementedError):
        Linked().links(np.arange(2), kv_len=2)
