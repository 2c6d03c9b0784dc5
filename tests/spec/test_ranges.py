"""Key ranges and block states against the pairs themselves: sound for all patterns, exact for the simple ones."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings, strategies as st

from polyhead.spec import Causal, Chunked, Global, Pattern, SlidingWindow
from polyhead.spec.ranges import BlockState, KeyRange, clip, merge, state_of
from tests.pictures import grid
from tests.strategies import bands, chunks, globals_, links, patterns, random_links

for_examples = pytest.mark.parametrize("examples", [200, pytest.param(3000, marks=pytest.mark.slow)])

blocks = st.tuples(st.integers(0, 12), st.integers(1, 6)).map(lambda b: (b[0], b[0] + b[1]))
"""Half-open blocks of queries."""

lengths = st.integers(0, 14)

single_links = random_links(block=st.none()) | links(block=st.none())


def states_by_key(layout: list[KeyRange], kv_len: int) -> list[BlockState]:
    """Return the state of each key, after checking that a layout is what it must be."""
    states = [BlockState.EMPTY] * kv_len
    end = 0
    for start, stop, state in layout:
        assert end <= start < stop <= kv_len, "ranges are sorted, disjoint, not empty and of keys that exist"
        assert state is not BlockState.EMPTY
        states[start:stop] = [state] * (stop - start)
        end = stop
    return states


def heads_of(pattern: Pattern) -> range:
    return range(min(pattern.table_heads, default=2) if pattern.per_head else 1)


@for_examples
def test_full_ranges_are_seen_whole_and_what_no_range_covers_by_nobody(examples: int) -> None:
    @settings(max_examples=examples)
    @given(patterns(), blocks, lengths)
    def holds(pattern: Pattern, block: tuple[int, int], kv_len: int) -> None:
        for head in heads_of(pattern):
            seen = grid(pattern, block[1], kv_len, head=head)[block[0] :]
            for key, state in enumerate(states_by_key(pattern.key_ranges(*block, kv_len=kv_len, head=head), kv_len)):
                assert state is not BlockState.FULL or seen[:, key].all()
                assert state is not BlockState.EMPTY or not seen[:, key].any()

    holds()


@for_examples
def test_ranges_of_bands_chunks_global_tokens_and_single_links_are_exact(examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.one_of(bands(), chunks(), globals_(), single_links), blocks, lengths)
    @example(Global(first=5, last=4), (0, 6), 6)  # every token is global, some twice
    def holds(pattern: Pattern, block: tuple[int, int], kv_len: int) -> None:
        for head in heads_of(pattern):
            seen = grid(pattern, block[1], kv_len, head=head)[block[0] :]
            expected = [BlockState(int(column.any()) + int(column.all())) for column in seen.T]
            assert states_by_key(pattern.key_ranges(*block, kv_len=kv_len, head=head), kv_len) == expected

    holds()


@given(patterns(), blocks, blocks, st.integers(1, 14))
def test_the_state_of_a_rectangle_holds_for_its_pairs(
    pattern: Pattern, queries: tuple[int, int], keys: tuple[int, int], kv_len: int
) -> None:
    for head in heads_of(pattern):
        state = pattern.block_state(queries, keys, kv_len=kv_len, head=head)
        pairs = grid(pattern, queries[1], max(keys[1], kv_len), head=head)[queries[0] :, keys[0] : min(keys[1], kv_len)]
        if keys[1] <= kv_len:  # a rectangle that reaches past the keys is never full
            assert state is not BlockState.FULL or pairs.all()
        assert state is not BlockState.EMPTY or not pairs.any() or pattern.depends_on_kv_len


@pytest.mark.parametrize(
    ("pattern", "queries", "keys", "state"),
    [
        (Causal(), (8, 16), (0, 8), BlockState.FULL),
        (Causal(), (8, 16), (8, 16), BlockState.PARTIAL),
        (Causal(), (8, 16), (16, 24), BlockState.EMPTY),
        (Causal(), (8, 16), (0, 9), BlockState.FULL),
        (SlidingWindow.causal(4), (8, 10), (6, 9), BlockState.FULL),
        (SlidingWindow.causal(4), (8, 16), (0, 5), BlockState.EMPTY),
        (Chunked(size=8), (8, 16), (8, 16), BlockState.FULL),
        (Chunked(size=8), (4, 12), (0, 8), BlockState.PARTIAL),
        (Global(first=2), (4, 8), (0, 2), BlockState.FULL),
        (Global(first=2), (4, 8), (2, 24), BlockState.EMPTY),
        (Global(first=2), (0, 2), (0, 24), BlockState.FULL),
        (Global(first=2) | Causal(), (8, 16), (0, 8), BlockState.FULL),
        (Chunked(size=8) & Causal(), (8, 16), (0, 8), BlockState.EMPTY),
    ],
)
def test_blocks_that_anyone_can_check(
    pattern: Pattern, queries: tuple[int, int], keys: tuple[int, int], state: BlockState
) -> None:
    assert pattern.block_state(queries, keys, kv_len=24) is state


def test_a_long_sequence_has_few_ranges() -> None:
    pattern = SlidingWindow.causal(4096) | Global(first=64) & Causal()
    layout = pattern.key_ranges(900_000, 900_128, kv_len=1_000_000)
    assert layout == [
        KeyRange(0, 64, BlockState.FULL),
        KeyRange(895_905, 896_032, BlockState.PARTIAL),
        KeyRange(896_032, 900_001, BlockState.FULL),
        KeyRange(900_001, 900_128, BlockState.PARTIAL),
    ]


FULL, PARTIAL, EMPTY = BlockState.FULL, BlockState.PARTIAL, BlockState.EMPTY


def test_clipping_cuts_to_the_keys_that_exist() -> None:
    layout = [KeyRange(-3, 2, FULL), KeyRange(2, 4, PARTIAL), KeyRange(6, 9, FULL), KeyRange(9, 12, FULL)]
    assert clip(layout, 8) == [KeyRange(0, 2, FULL), KeyRange(2, 4, PARTIAL), KeyRange(6, 8, FULL)]


def test_merging_joins_neighbours_of_one_state() -> None:
    one, other = [KeyRange(0, 4, FULL), KeyRange(4, 6, PARTIAL)], [KeyRange(2, 8, FULL)]
    assert merge([one, other], max) == [KeyRange(0, 8, FULL)]
    assert merge([one, other], min) == [KeyRange(2, 4, FULL), KeyRange(4, 6, PARTIAL)]
    assert merge([one, []], min) == []


@pytest.mark.parametrize(
    ("keys", "state"), [((0, 4), FULL), ((1, 3), FULL), ((0, 5), PARTIAL), ((3, 9), PARTIAL), ((6, 9), EMPTY)]
)
def test_the_state_of_some_keys_under_a_layout(keys: tuple[int, int], state: BlockState) -> None:
    layout = [KeyRange(0, 2, FULL), KeyRange(2, 4, FULL), KeyRange(4, 6, PARTIAL)]
    assert state_of(layout, *keys) is state
