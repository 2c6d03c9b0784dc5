"""Pairs counted by arithmetic and by ranges are those counted one by one."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import polyhead as ph
from polyhead.cost import allowed_pairs, computed_pairs
from polyhead.cost.pairs import QUERY_BLOCK
from polyhead.errors import SpecError
from tests import strategies

LENGTH = 300  # more than two blocks of queries, and no multiple of one


def spec_of(pattern: ph.Band, num_heads: int = 1) -> ph.AttentionSpec:
    return ph.AttentionSpec(storage=ph.Grouped(num_heads=num_heads, head_dim=4), pattern=pattern)


def one_by_one(pattern: ph.Band, q_len: int, kv_len: int, head: int = 0) -> int:
    queries, keys = np.arange(kv_len - q_len, kv_len), np.arange(kv_len)
    return int(pattern.allowed(queries, keys, kv_len=kv_len, head=head).sum())


@pytest.mark.parametrize("q_len", [0, 1, 77, LENGTH])
@pytest.mark.parametrize(
    "pattern",
    [
        ph.Full(),
        ph.Causal(),
        ph.SlidingWindow.causal(50),
        ph.SlidingWindow.symmetric(3),
        ph.SlidingWindow(left=400, right=2),
        ph.Causal() & (ph.SlidingWindow.causal(50) | ph.Global(first=4)),
        ph.Chunked(size=64),
        ph.RandomLinks(per_query=5, seed=1),
        ph.BigBird(block=16, seed=2),
    ],
    ids=repr,
)
def test_pairs_are_those_counted_one_by_one(pattern: ph.Band, q_len: int) -> None:
    expected = sum(one_by_one(pattern, q_len, LENGTH, head) for head in range(2))
    assert allowed_pairs(spec_of(pattern, 2), q_len, LENGTH) == expected
    assert expected <= computed_pairs(spec_of(pattern, 2), q_len, LENGTH) <= 2 * q_len * LENGTH


@given(strategies.any_patterns(1), st.integers(0, 40), st.integers(0, 40))
def test_so_are_those_of_any_pattern(pattern: ph.Band, q_len: int, more: int) -> None:
    expected = one_by_one(pattern, q_len, q_len + more)
    assert allowed_pairs(spec_of(pattern), q_len, q_len + more) == expected
    assert expected <= computed_pairs(spec_of(pattern), q_len, q_len + more) <= q_len * (q_len + more)


@settings(max_examples=60)
@given(strategies.any_patterns(1), st.integers(1, 900), st.integers(0, 300))
def test_blocks_that_look_alike_are_counted_once(pattern: ph.Band, q_len: int, past: int) -> None:
    """At lengths of many blocks, where a pattern's repetition is made use of."""
    assert allowed_pairs(spec_of(pattern), q_len, q_len + past) == one_by_one(pattern, q_len, q_len + past)
    ends = [min(start + QUERY_BLOCK, q_len + past) for start in range(past, q_len + past, QUERY_BLOCK)]
    computed = 0
    for start, end in zip([past, *ends], ends, strict=False):
        ranges = pattern.key_ranges(start, end, kv_len=q_len + past, head=0)
        computed += (end - start) * sum(part.stop - part.start for part in ranges)
    assert computed_pairs(spec_of(pattern), q_len, q_len + past) == computed


def test_heads_that_differ_are_counted_each() -> None:
    pattern = ph.Links(table=[[(0,), (0, 1)], [(0,), ()], [(), ()]])
    assert allowed_pairs(spec_of(pattern, 3), 2, 2) == 3 + 1 + 0


@given(st.integers(0, 2000), st.integers(0, 500))
def test_blocks_under_a_causal_pattern(tokens: int, past: int) -> None:
    """Each block of queries computes the keys up to its last query."""
    ends = [min(start + QUERY_BLOCK, tokens) for start in range(0, tokens, QUERY_BLOCK)]
    expected = sum((end - start) * (past + end) for start, end in zip([0, *ends], ends, strict=False))
    assert computed_pairs(spec_of(ph.Causal()), tokens, past + tokens) == expected


@given(st.integers(0, 300), st.integers(1, 100), st.integers(0, 100))
def test_a_wider_window_never_has_fewer(tokens: int, size: int, more: int) -> None:
    narrow, wide = (spec_of(ph.SlidingWindow.causal(width)) for width in (size, size + more))
    assert allowed_pairs(narrow, tokens, tokens) <= allowed_pairs(wide, tokens, tokens)
    assert computed_pairs(narrow, tokens, tokens) <= computed_pairs(wide, tokens, tokens)


@pytest.mark.parametrize(("q_len", "kv_len"), [(-1, 3), (4, 3)])
def test_what_is_wrong_is_said(q_len: int, kv_len: int) -> None:
    with pytest.raises(SpecError, match=re.escape(f"{q_len} queries and {kv_len} keys")):
        allowed_pairs(spec_of(ph.Full()), q_len, kv_len)


def test_a_million_tokens_are_counted_without_pairs() -> None:
    tokens = 2**20
    assert allowed_pairs(spec_of(ph.Causal()), tokens, tokens) == tokens * (tokens + 1) // 2
