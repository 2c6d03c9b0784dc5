"""Pairs counted range by range are those counted one by one, and what a case computes follows from them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import polyhead as ph
from polyhead.bench.case import Case
from polyhead.bench.cases import CASES, case
from polyhead.bench.counts import allowed_pairs, pairs, useful_operations

LENGTH = 300  # more than two blocks of queries, and no multiple of one


def one_by_one(pattern: ph.Band, q_len: int, kv_len: int, head: int = 0) -> int:
    queries, keys = np.arange(kv_len - q_len, kv_len), np.arange(kv_len)
    return int(pattern.allowed(queries, keys, kv_len=kv_len, head=head).sum())


@pytest.mark.parametrize("q_len", [1, 77, LENGTH])
@pytest.mark.parametrize(
    "pattern",
    [
        *{repr(one.attention.pattern): one.attention.pattern for one in CASES}.values(),
        ph.SlidingWindow.causal(50),
        ph.Causal() & (ph.SlidingWindow.causal(50) | ph.Global(first=4)),
        ph.RandomLinks(per_query=5, seed=1),
    ],
    ids=repr,
)
def test_pairs_are_those_counted_one_by_one(pattern: ph.Band, q_len: int) -> None:
    for head in (0, 3):
        assert allowed_pairs(pattern, q_len, LENGTH, head=head) == one_by_one(pattern, q_len, LENGTH, head)


def test_heads_that_differ_are_counted_each() -> None:
    spec = ph.AttentionSpec(
        storage=ph.Grouped(num_heads=3, head_dim=4), pattern=ph.Links(table=[[(0,), (0, 1)], [(0,), ()], [(), ()]])
    )
    assert pairs(spec, 2, 2) == 3 + 1 + 0


def small(name: str, **changes: object) -> Case:
    return dataclasses.replace(case(name).at(16), **changes)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", 8 * 16 * 16 * 4 * 64),
        ("causal", 8 * 136 * 4 * 64),
        ("causal-cached", 8 * (15 + 16) * 4 * 64),
        ("differential", 8 * 136 * 2 * (2 * 64 + 128)),
        ("linear", 8 * 16 * 4 * 64 * 64),
        ("mla", 16 * 136 * 2 * (192 + 128) + 2 * 16 * 16 * 256 * 512),
        ("t5-layer", 8 * 16 * 16 * 4 * 64 + 2 * 16 * 4 * 512 * 512),
        ("train-window", 3.5 * 8 * 136 * 4 * 64),
        ("train-t5-layer", 3.5 * 8 * 16 * 16 * 4 * 64 + 3 * 2 * 16 * 4 * 512 * 512),
    ],
)
def test_operations(name: str, expected: float) -> None:
    assert useful_operations(small(name)) == expected
