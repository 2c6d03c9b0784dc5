"""How position enters, as far as the spec computes it: T5's buckets, RoPE's frequencies, ALiBi's slopes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from polyhead.errors import SpecError
from polyhead.spec import Alibi, LinearScaling, NoPosition, NTKScaling, RelativeBias, Rotary
from polyhead.spec.position import alibi_slopes


def bucket_of(bias: RelativeBias, distance: int) -> int:
    limit = bias.max_distance
    return int(bias.buckets()[max(-limit, min(limit, distance)) + limit])


def test_t5_tells_near_distances_apart_and_far_ones_by_their_logarithm() -> None:
    bias = RelativeBias.t5(num_buckets=8, max_distance=16, bidirectional=False)
    earlier = [bucket_of(bias, -distance) for distance in (0, 1, 2, 3, 4, 5, 6, 8, 11, 12, 16, 1000)]
    assert earlier == [0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 7, 7]


def test_one_sided_t5_puts_the_future_into_the_query_s_own_bucket() -> None:
    bias = RelativeBias.t5(bidirectional=False)
    assert {bucket_of(bias, distance) for distance in range(200)} == {0}


def test_two_sided_t5_has_half_of_its_buckets_for_later_keys() -> None:
    bias = RelativeBias.t5()
    assert bias.num_entries == 32
    for distance in (1, 5, 20, 90, 500):
        assert bucket_of(bias, distance) == bucket_of(bias, -distance) + 16


@given(st.integers(2, 20), st.integers(1, 200), st.booleans())
def test_t5_s_buckets_grow_with_distance_and_stay_in_the_table(half: int, more: int, bidirectional: bool) -> None:
    num_buckets = 2 * half
    bias = RelativeBias.t5(num_buckets=num_buckets, max_distance=half + more, bidirectional=bidirectional)
    buckets = bias.buckets()
    earlier = buckets[: bias.max_distance + 1][::-1]
    assert (np.diff(earlier) >= 0).all()
    assert earlier[0] == 0
    assert buckets.min() >= 0
    assert buckets.max() < num_buckets
    assert len(buckets) == 2 * bias.max_distance + 1


def test_clipped_and_shaw_have_an_entry_for_each_distance() -> None:
    for bias in (RelativeBias.clipped(max_distance=2), RelativeBias.shaw(max_distance=2)):
        assert [bucket_of(bias, distance) for distance in range(-4, 5)] == [0, 0, 0, 1, 2, 3, 4, 4, 4]
        assert bias.num_entries == 5
    assert RelativeBias.clipped(max_distance=2) != RelativeBias.shaw(max_distance=2)


def test_a_plane_turns_by_its_power_of_theta() -> None:
    frequencies = Rotary(theta=100.0).frequencies(4)
    np.testing.assert_allclose(frequencies, [1.0, 100.0**-0.5], rtol=1e-15)


def test_reversed_turns_the_other_way() -> None:
    assert (Rotary(direction="reversed").frequencies(8) == -Rotary().frequencies(8)).all()


def test_without_scaling_nothing_depends_on_the_query_and_nothing_grows() -> None:
    assert not Rotary().per_query
    assert Rotary().amplitude == 1.0
    assert Rotary(scaling=LinearScaling(factor=2.0)).frequencies(4)[0] == 0.5


def test_slopes_of_a_power_of_two_are_geometric() -> None:
    assert alibi_slopes(8) == tuple(2.0**-k for k in range(1, 9))
    assert alibi_slopes(1) == (2.0**-8,)
    assert alibi_slopes(16)[0] == 2.0**-0.5
    assert alibi_slopes(16)[-1] == 2.0**-8


def test_slopes_of_other_counts_take_every_other_one_of_the_next_power() -> None:
    assert alibi_slopes(3) == (2.0**-4, 2.0**-8, 2.0**-2)
    np.testing.assert_allclose(alibi_slopes(12), [*alibi_slopes(8), *alibi_slopes(16)[0:8:2]], rtol=0)


@given(st.integers(1, 100))
def test_there_is_a_different_slope_for_each_head(num_heads: int) -> None:
    slopes = alibi_slopes(num_heads)
    assert len(set(slopes)) == num_heads
    assert all(0 < slope < 1 for slope in slopes)


def test_shards_of_the_heads_have_the_slopes_of_the_whole() -> None:
    shards = [Alibi(first_head=first, total_heads=12).head_slopes(4) for first in (0, 4, 8)]
    assert sum(shards, ()) == alibi_slopes(12)
    assert Alibi(first_head=2).head_slopes(6) == alibi_slopes(8)[2:]


def test_slopes_that_are_given_are_taken() -> None:
    assert Alibi(slopes=[1, -0.5]).head_slopes(2) == (1.0, -0.5)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: RelativeBias(max_distance=3), r"RelativeBias alone is no bias; use RelativeBias.t5\(\), .clipped"),
    (lambda: RelativeBias.clipped(max_distance=-1), "max_distance=-1 is not allowed"),
    (lambda: RelativeBias.shaw(max_distance=1.5), "max_distance=1.5 is not allowed"),
    (lambda: RelativeBias.t5(num_buckets=3), "num_buckets=3 is not allowed; give a whole number of at least 4"),
    (lambda: RelativeBias.t5(num_buckets=1, bidirectional=False), "num_buckets=1 is not allowed; .* at least 2"),
    (lambda: RelativeBias.t5(num_buckets=33), "num_buckets=33 is odd; a bidirectional bias halves it"),
    (lambda: RelativeBias.t5(max_distance=8), "max_distance=8 is not allowed; give a whole number of at least 9"),
    (lambda: RelativeBias.t5(bidirectional=1), "bidirectional=1 is not allowed; use True or False"),
    (lambda: Rotary(theta=1.0), "theta=1.0 is not allowed; give a finite number above 1"),
    (lambda: Rotary(pairs="halves"), "pairs='halves' is not allowed; use 'half' or 'interleaved'"),
    (lambda: Rotary(direction="left"), "direction='left' is not allowed; use 'paper' or 'reversed'"),
    (lambda: Rotary(rotary_dim=0), "rotary_dim=0 is not allowed; give a whole number of at least 2"),
    (lambda: Rotary(rotary_dim=3), "rotary_dim=3 is odd; a plane joins two widths, use an even number"),
    (lambda: Rotary(scaling=2.0), r"scaling=2.0 is not a scaling; use LinearScaling\(factor=...\)"),
    (lambda: Rotary(scaling=NTKScaling), "is not a scaling"),
    (lambda: Alibi(slopes=(math.nan,)), "slopes=nan is not allowed"),
    (lambda: Alibi(slopes=0.5), "slopes=0.5 is not allowed; give several numbers"),
    (lambda: Alibi(first_head=-1), "first_head=-1 is not allowed"),
    (lambda: Alibi(total_heads=0), "total_heads=0 is not allowed"),
    (lambda: Alibi(slopes=(1.0,), first_head=1), "slopes are given, so first_head and total_heads say nothing"),
    (lambda: Alibi(slopes=(1.0,), total_heads=2), "slopes are given, so first_head and total_heads say nothing"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_a_position_that_is_not_defined_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


def test_no_position_is_equal_to_itself_alone() -> None:
    assert NoPosition() == NoPosition() != Alibi()
