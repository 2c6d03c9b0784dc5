"""Which cache a spec gets, and what is refused when one is made."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import polyhead as ph
from polyhead.cache import Cache, ContextCache, GrowingCache, RollingCache, StateCache, new_cache
from tests.cache.helpers import KINDS, SINKS, Kind, by_kind
from tests.inputs import spec

DYNAMIC = ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=8))
LONG = ph.Rotary(
    scaling=ph.LongRopeScaling(short_factor=(1.0,) * 4, long_factor=(2.0,) * 4, original_max_seq_len=8, factor=2.0)
)
YARN = ph.Rotary(scaling=ph.YarnScaling(factor=2.0, original_max_seq_len=8))

CLASSES: list[tuple[dict[str, Any], type[Cache]]] = [
    ({}, GrowingCache),
    ({"position": ph.Rotary(), "weighting": ph.Softmax(sink=True, softcap=5.0)}, GrowingCache),
    ({"position": ph.RelativeBias.shaw(max_distance=2)}, GrowingCache),
    ({"weighting": ph.Differential()}, GrowingCache),
    ({"pattern": ph.RandomLinks(per_query=2, seed=0)}, GrowingCache),
    ({"pattern": ph.RandomLinks(per_query=2, seed=0) | ph.SlidingWindow.causal(3)}, GrowingCache),
    ({"pattern": ph.Links(table=[[[], [0], [0, 1]]])}, GrowingCache),
    ({"pattern": ph.Chunked(size=4) | ph.Causal()}, GrowingCache),
    ({"pattern": ph.SlidingWindow.causal(3)}, RollingCache),
    ({"pattern": ph.SlidingWindow.causal(3), "weighting": ph.Differential()}, RollingCache),
    ({"pattern": ph.SlidingWindow.symmetric(3)}, RollingCache),
    ({"pattern": ph.Chunked(size=4)}, RollingCache),
    ({"pattern": ph.Chunked(size=4, left=2, right=1)}, RollingCache),
    ({"pattern": ph.Global(first=2)}, RollingCache),
    ({"pattern": SINKS}, RollingCache),
    ({"pattern": ph.RandomLinks(per_query=2, seed=0) & ph.SlidingWindow.causal(3)}, RollingCache),
    ({"pattern": ph.SlidingWindow.causal(3), "position": DYNAMIC}, RollingCache),
    ({"weighting": ph.Linear()}, StateCache),
    ({"weighting": ph.Linear(), "position": ph.Rotary()}, StateCache),
    ({"weighting": ph.Linear(), "position": YARN}, StateCache),
    # each query turns all keys by frequencies of its own, which a sum over keys rules out
    ({"weighting": ph.Linear(), "position": DYNAMIC}, GrowingCache),
    ({"weighting": ph.Linear(), "position": LONG}, GrowingCache),
]


def causal(choices: dict[str, Any]) -> dict[str, Any]:
    return {**choices, "pattern": choices.get("pattern", ph.Causal()) & ph.Causal()}


@pytest.mark.parametrize("storage", ["mha", "gqa", "mqa", "mla"])
@pytest.mark.parametrize(("choices", "kept"), CLASSES)
def test_the_class_follows_from_the_spec_whatever_the_storage(
    choices: dict[str, Any], kept: type[Cache], storage: str
) -> None:
    whole = spec(storage, **causal(choices))
    assert type(new_cache(whole, batch=2)) is kept
    assert type(ph.Attention(whole, embed_dim=8).new_cache(2)) is kept


NO_PAST = {
    "full": (ph.Full(), "see later keys"),
    "symmetric": (ph.SlidingWindow.symmetric(3), "see later keys"),
    "right": (ph.SlidingWindow(left=3, right=1), "see later keys"),
    "chunked": (ph.Chunked(size=4), "see later keys"),
    "global": (ph.Global(first=1), "see later keys"),
    "causal or global": (ph.Causal() | ph.Global(first=1), "see later keys"),
    "bigbird": (ph.BigBird(seed=0), "see later keys"),
    "links ahead": (ph.Links(table=[[[1], [0]]]), "see later keys"),
    "random over all": (ph.RandomLinks(per_query=1, seed=0, span="all"), "see later keys"),
    "last": (ph.Global(first=1, last=1) & ph.Causal(), "depends on how long the whole sequence is"),
    "random over all, causal": (
        ph.RandomLinks(per_query=1, seed=0, span="all") & ph.Causal(),
        "depends on how long the whole sequence is",
    ),
}
no_past = pytest.mark.parametrize(("pattern", "why"), NO_PAST.values(), ids=NO_PAST)


@no_past
def test_a_spec_without_a_cache_is_refused_with_the_reason(pattern: ph.spec.Pattern, why: str) -> None:
    whole = spec("gqa", pattern=pattern)
    for make in (lambda: new_cache(whole, batch=1), lambda: ph.Attention(whole, embed_dim=8).new_cache(1)):
        with pytest.raises(ph.SpecError, match=f"{re.escape(repr(pattern))} .*{why}.*no cache.*; use "):
            make()


@no_past
def test_cross_attention_has_a_cache_whatever_its_pattern(pattern: ph.spec.Pattern, why: str) -> None:
    whole = spec("gqa", pattern=pattern)
    assert type(new_cache(whole, batch=1, source="cross")) is ContextCache
    layer = ph.Attention(ph.LayerSpec(attention=whole, embed_dim=8, source="cross"))
    assert type(layer.new_cache(1)) is ContextCache


def test_the_cache_that_a_refusal_names_exists() -> None:
    with pytest.raises(ph.SpecError, match=re.escape("use SlidingWindow(left=3, right=0)")):
        new_cache(spec(pattern=ph.SlidingWindow.symmetric(3)), batch=1)
    assert type(new_cache(spec(pattern=ph.SlidingWindow(left=3, right=0)), batch=1)) is RollingCache


@by_kind
def test_a_new_cache_is_empty_and_says_what_it_was_made_with(kind: Kind) -> None:
    cache = new_cache(kind.spec, batch=3, max_seq_len=7, source=kind.source, dtype=torch.float64)
    assert cache.spec == kind.spec
    assert (cache.batch, cache.lengths, cache.length) == (3, (0, 0, 0), 0)
    assert (cache.dtype, cache.device) == (torch.float64, torch.device("cpu"))
    assert cache.max_seq_len == (None if kind.kept is RollingCache else 7)


@by_kind
def test_a_cache_can_be_made_on_another_device(kind: Kind) -> None:
    cache = new_cache(kind.spec, batch=3, max_seq_len=7, source=kind.source, device="meta")
    assert cache.device == torch.device("meta")


def test_a_layer_makes_its_cache_in_its_own_dtype_and_place() -> None:
    layer = ph.Attention(KINDS["growing"].spec, embed_dim=8, dtype=torch.bfloat16, device="meta")
    cache = layer.new_cache(1)
    assert (cache.dtype, cache.device) == (torch.bfloat16, torch.device("meta"))
    other = layer.new_cache(1, dtype=torch.float64, device="cpu")
    assert (other.dtype, other.device) == (torch.float64, torch.device("cpu"))


def test_slack_is_a_rolling_caches_alone() -> None:
    assert new_cache(KINDS["rolling"].spec, batch=1, slack=4).slack == 4
    with pytest.raises(ph.UnsupportedError, match=r"slack=4: a cache of sums cannot crop; clone\(\) it"):
        new_cache(KINDS["state"].spec, batch=1, slack=4)
    new_cache(KINDS["growing"].spec, batch=1, slack=4)  # it crops any number without


@pytest.mark.parametrize("batch", [-1, 1.5, "2", None])
def test_a_batch_that_is_no_number_of_sequences_is_refused(batch: Any) -> None:
    with pytest.raises(ph.SpecError, match=f"batch={re.escape(repr(batch))} is not allowed; give a whole number"):
        new_cache(KINDS["growing"].spec, batch=batch)


@pytest.mark.parametrize("longest", [0, -1, 2.5])
@pytest.mark.parametrize("name", ["growing", "state", "context"])
def test_a_max_seq_len_that_is_no_length_is_refused(name: str, longest: Any) -> None:
    with pytest.raises(ph.SpecError, match=f"max_seq_len={longest} is not allowed; give a whole number of at least 1"):
        new_cache(KINDS[name].spec, batch=1, source=KINDS[name].source, max_seq_len=longest)


@pytest.mark.parametrize("slack", [-1, 0.5])
@pytest.mark.parametrize("name", ["rolling", "growing", "context"])
def test_a_slack_that_is_no_number_of_tokens_is_refused(name: str, slack: Any) -> None:
    with pytest.raises(ph.SpecError, match=f"slack={slack} is not allowed; give a whole number of at least 0"):
        new_cache(KINDS[name].spec, batch=1, source=KINDS[name].source, slack=slack)


def test_a_source_that_is_neither_self_nor_cross_is_refused() -> None:
    with pytest.raises(ph.SpecError, match="source='encoder'"):
        new_cache(KINDS["growing"].spec, batch=1, source="encoder")


def test_a_dtype_that_is_not_floating_is_refused() -> None:
    with pytest.raises(ph.PolyheadError, match="int64"):
        new_cache(KINDS["growing"].spec, batch=1, dtype=torch.int64)
