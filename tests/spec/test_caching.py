"""What a cache must keep: its kind, how far back it reaches, how many numbers, and which specs have none."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given

from polyhead.errors import SpecError
from polyhead.spec import (
    Alibi,
    AttentionSpec,
    BigBird,
    Causal,
    Chunked,
    Differential,
    DynamicNTKScaling,
    Full,
    Global,
    Grouped,
    Latent,
    Linear,
    Links,
    LongRopeScaling,
    RandomLinks,
    Rotary,
    SlidingWindow,
    Softmax,
    YarnScaling,
    retention,
)
from polyhead.spec.caching import Retention
from polyhead.spec.ranges import Reach
from tests.strategies import specs

GQA = Grouped(num_heads=6, num_kv_heads=2, head_dim=8, v_head_dim=5)
MLA = Latent(num_heads=6, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=5)
DYNAMIC = Rotary(scaling=DynamicNTKScaling(factor=2.0, original_max_seq_len=8))
LONG = Rotary(scaling=LongRopeScaling(short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_seq_len=8))
YARN = Rotary(scaling=YarnScaling(factor=2.0, original_max_seq_len=8))
SINK_AND_WINDOW = (SlidingWindow.causal(4) | Global(first=2)) & Causal()


def spec(storage: Any = GQA, pattern: Any = Causal(), **choices: Any) -> AttentionSpec:  # noqa: B008
    return AttentionSpec(storage=storage, pattern=pattern, **choices)


ALL = Reach(left=None)


@pytest.mark.parametrize(
    ("whole", "kind", "reach", "row"),
    [
        # rows of every token
        (spec(), "growing", ALL, 2 * 8 + 2 * 5),
        (spec(weighting=Softmax(sink=True), position=Alibi()), "growing", ALL, 2 * 8 + 2 * 5),
        (spec(Grouped(num_heads=6, head_dim=8), weighting=Differential()), "growing", ALL, 12 * 8 + 6 * 16),
        (spec(MLA, position=Rotary()), "growing", ALL, 16 + 4),
        (spec(MLA, weighting=Differential(), position=Rotary()), "growing", ALL, 16 + 4),
        (spec(pattern=RandomLinks(per_query=2, seed=0)), "growing", ALL, 26),
        (spec(pattern=Links(table=(((0,), (0, 1)),))), "growing", ALL, 26),
        (spec(pattern=BigBird() & Causal()), "growing", ALL, 26),
        # rows of a window
        (spec(pattern=SlidingWindow.causal(4)), "rolling", Reach(left=3), 26),
        (spec(MLA, SlidingWindow.causal(4)), "rolling", Reach(left=3), 20),
        (spec(pattern=SlidingWindow(left=0, right=0)), "rolling", Reach(left=0), 26),
        (spec(pattern=Chunked(size=8) & Causal()), "rolling", Reach(left=7), 26),
        (spec(pattern=SINK_AND_WINDOW), "rolling", Reach(left=3, first=2), 26),
        (spec(pattern=RandomLinks(per_query=2, seed=0) & SlidingWindow(left=9)), "rolling", Reach(left=9), 26),
        (spec(pattern=SlidingWindow.causal(4), position=DYNAMIC), "rolling", Reach(left=3), 26),
        # sums
        (spec(weighting=Linear()), "state", ALL, 2 * 8 * (5 + 1)),
        (spec(weighting=Linear(), position=YARN), "state", ALL, 2 * 8 * (5 + 1)),
        (spec(MLA, weighting=Linear(), position=Rotary()), "state", ALL, 6 * 12 * (5 + 1)),
        # each query turns the keys its own way, which a sum over turned keys does not allow
        (spec(weighting=Linear(), position=DYNAMIC), "growing", ALL, 26),
        (spec(weighting=Linear(), position=LONG), "growing", ALL, 26),
    ],
)
def test_what_a_spec_keeps(whole: AttentionSpec, kind: str, reach: Reach, row: int) -> None:
    assert retention(whole) == retention(whole, "self") == Retention(kind=kind, reach=reach, row=row)


@pytest.mark.parametrize("pattern", [Full(), Causal(), SlidingWindow.symmetric(2), Global(first=0, last=1)], ids=repr)
@pytest.mark.parametrize("weighting", [Softmax(), Differential()], ids=repr)
def test_another_sequence_is_kept_whole_whatever_the_pattern(pattern: Any, weighting: Any) -> None:
    kept = retention(spec(Grouped(num_heads=2, head_dim=4), pattern, weighting=weighting), "cross")
    assert kept == Retention(kind="context", reach=ALL, row=16 if weighting == Softmax() else 32)


def test_another_sequence_is_kept_as_rows_under_linear_weighting_too() -> None:
    assert retention(spec(pattern=Full(), weighting=Linear()), "cross") == Retention(kind="context", reach=ALL, row=26)


@pytest.mark.parametrize(
    ("whole", "source", "lengths"),
    [
        (spec(), "self", {0: 0, 1: 26, 1000: 26_000}),
        (spec(pattern=Full()), "cross", {0: 0, 1: 26, 1000: 26_000}),
        (spec(pattern=SlidingWindow.causal(4)), "self", {0: 0, 3: 78, 4: 104, 5: 104, 1000: 104}),
        (spec(pattern=SINK_AND_WINDOW), "self", {5: 130, 6: 156, 7: 156, 1000: 156}),
        (spec(weighting=Linear()), "self", {0: 96, 1: 96, 1000: 96}),
    ],
    ids=["growing", "context", "rolling", "rolling with first tokens", "state"],
)
def test_how_many_numbers_a_sequence_takes(whole: AttentionSpec, source: str, lengths: dict[int, int]) -> None:
    assert {length: retention(whole, source).numbers(length) for length in lengths} == lengths


def refused(pattern: Any, message: str) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        retention(spec(pattern=pattern))
    assert retention(spec(pattern=pattern), "cross").kind == "context"


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (Full(), "Causal()"),
        (SlidingWindow.symmetric(2), "SlidingWindow(left=2, right=0)"),
        (Chunked(size=4), "Causal() & Chunked(size=4)"),
        (
            SlidingWindow.causal(4) | Global(first=2),
            "Causal() & (Global(first=2) | SlidingWindow(left=3, right=0))",
        ),
    ],
    ids=repr,
)
def test_there_is_no_cache_where_a_query_sees_later_keys(pattern: Any, instead: str) -> None:
    reason = "lets a query see later keys, which do not exist yet when it is decoded, so there is no cache for it"
    refused(pattern, f"pattern={pattern!r} {reason}; use {instead}")


@pytest.mark.parametrize(
    "pattern", [Global(first=1, last=2) & Causal(), RandomLinks(per_query=2, seed=0, span="all") & Causal()], ids=repr
)
def test_there_is_no_cache_where_the_final_length_decides(pattern: Any) -> None:
    reason = "each new token would change what earlier ones saw, and there is no cache for it"
    depends = "depends on how long the whole sequence is"
    instead = "Global(first=...) and RandomLinks(span='past')"
    refused(pattern, f"pattern={pattern!r} {depends}, so {reason}; use {instead}")


def test_linear_weighting_over_all_keys_has_no_cache_either() -> None:
    with pytest.raises(SpecError, match=re.escape("so there is no cache for it; use Causal()")):
        retention(spec(pattern=Full(), weighting=Linear()))


@given(specs())
def test_exactly_the_causal_specs_of_no_fixed_length_have_a_cache(drawn: AttentionSpec) -> None:
    pattern = drawn.pattern
    if pattern.is_causal and not pattern.depends_on_kv_len:
        assert (retention(drawn).kind == "rolling") == (pattern.reach.left is not None)
    else:
        with pytest.raises(SpecError, match="no cache for it; use "):
            retention(drawn)
    assert retention(drawn, "cross").kind == "context"
