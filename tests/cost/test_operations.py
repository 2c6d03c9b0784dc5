"""Operations are those that PyTorch counts in our own layer; bytes and the rest follow from the spec."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.flop_counter import FlopCounterMode

import polyhead as ph
from polyhead.cost import Work, decode_step, prefill, training_step
from polyhead.errors import SpecError
from tests import strategies

GROUPED = ph.Grouped(num_heads=8, num_kv_heads=2, head_dim=16)
LATENT = ph.Latent(num_heads=8, kv_lora_rank=32, q_lora_rank=48, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)
SPECS = {
    "grouped": ph.AttentionSpec(storage=GROUPED, position=ph.Rotary()),
    "alibi": ph.AttentionSpec(storage=GROUPED, position=ph.Alibi()),
    "differential": ph.AttentionSpec(storage=GROUPED, weighting=ph.Differential()),
    "latent": ph.AttentionSpec(storage=LATENT, position=ph.Rotary()),
    "linear": ph.AttentionSpec(storage=GROUPED, weighting=ph.Linear()),
}


def layer(name: str, **changes: object) -> ph.LayerSpec:
    return ph.LayerSpec(attention=dataclasses.replace(SPECS[name], **changes), embed_dim=64)


def counted(run: functools.partial[torch.Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", SPECS)
def test_prefill_is_what_pytorch_counts(name: str) -> None:
    spec, x = layer(name), torch.empty(2, 96, 64, device="meta")
    with torch.no_grad():
        found = counted(functools.partial(ph.Attention(spec, device="meta"), x))
    assert prefill(spec, 96, batch=2).executed == found


@pytest.mark.parametrize("name", ["grouped", "differential", "latent"])
def test_training_is_what_pytorch_counts_without_forming_scores_again(name: str) -> None:
    spec, x = layer(name), torch.empty(2, 96, 64, device="meta", requires_grad=True)
    module = ph.Attention(spec, device="meta")
    assert training_step(spec, 96, batch=2).useful == counted(lambda: module(x, kernel="plain").sum().backward())
    forward = prefill(spec, 96, batch=2)
    assert training_step(spec, 96, batch=2).executed > 3 * forward.executed


@pytest.mark.parametrize("tokens", [1, 40, 64, 96, 128])
def test_causal_sums_are_what_pytorch_counts(tokens: int) -> None:
    spec = layer("linear", pattern=ph.Causal())
    with torch.no_grad():
        found = counted(functools.partial(ph.Attention(spec), torch.randn(2, tokens, 64)))
    assert prefill(spec, tokens, batch=2).executed == found


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize(
    ("name", "kernel"),
    [("grouped", "decode"), ("alibi", "decode"), ("differential", "decode"), ("latent", "absorbed")],
)
def test_a_decode_step_is_what_pytorch_counts(name: str, kernel: str, queries: int) -> None:
    spec = layer(name, pattern=ph.Causal())
    module = ph.Attention(spec).requires_grad_(False)
    cache = module.new_cache(2, 300)
    module(torch.randn(2, 200, 64), cache=cache)
    found = counted(functools.partial(module, torch.randn(2, queries, 64), cache=cache, kernel=kernel))
    assert decode_step(spec, 200 + queries, batch=2, queries=queries).executed == found


@pytest.mark.parametrize("tokens", [1, 5])
def test_cross_attention_is_what_pytorch_counts(tokens: int) -> None:
    spec = ph.LayerSpec(attention=SPECS["grouped"], embed_dim=64, source="cross", context_dim=48)
    module = ph.Attention(spec).requires_grad_(False)
    cache = module.new_cache(2)
    x, context = torch.randn(2, tokens, 64), torch.randn(2, 70, 48)
    first = counted(functools.partial(module, x, context=context, cache=cache, kernel="plain"))
    assert prefill(spec, tokens, batch=2, context_length=70).executed == first
    later = counted(functools.partial(module, x, cache=cache, kernel="plain"))
    assert decode_step(spec, 9 + tokens, batch=2, queries=tokens, context_length=70).executed == later


def test_bytes_of_a_decode_step() -> None:
    """Weights and the cache once, and of a token's activations each twice, but for input and output."""
    spec = layer("grouped", pattern=ph.Causal())
    weights = 64 * 128 + 2 * 64 * 32 + 128 * 64
    cache = 3 * 1000 * 2 * 2 * 16
    activations = 3 * (2 * 64 + 2 * (128 + 32 + 32 + 128))
    found = decode_step(spec, 1000, batch=3, precision="weights=int8,cache=fp8,activations=float32")
    assert found.moved == weights + cache + 4 * activations
    assert found.temporary == 4 * 3 * 8 * 1000


def test_bytes_of_a_window_stop_growing() -> None:
    spec = layer("grouped", pattern=ph.SlidingWindow.causal(100))
    assert decode_step(spec, 100) == decode_step(spec, 10_000)
    assert decode_step(spec, 100).moved > decode_step(spec, 99).moved
    state = layer("linear", pattern=ph.Causal())
    assert decode_step(state, 2) == decode_step(state, 10_000)


def test_layers_add_up() -> None:
    one = Work(useful=1, executed=2, moved=3, temporary=4, attending=5, cached=6, layers=1)
    other = Work(useful=10, executed=20, moved=30, temporary=3, attending=50, cached=60, layers=2)
    assert one + other == Work(useful=11, executed=22, moved=33, temporary=4, attending=55, cached=66, layers=3)
    assert 3 * one == Work(useful=3, executed=6, moved=9, temporary=4, attending=15, cached=18, layers=3)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_attentions_own_is_a_part(name: str) -> None:
    spec = layer(name, pattern=ph.Causal())
    for work in (prefill(spec, 96), decode_step(spec, 96), training_step(spec, 96)):
        assert 0 < work.attending < work.executed
        assert 0 < work.cached < work.moved
    assert prefill(spec, 192).executed - prefill(spec, 192).attending == 2 * (
        prefill(spec, 96).executed - prefill(spec, 96).attending
    )


@settings(max_examples=60)
@given(strategies.cached_layers(), st.integers(1, 80), st.integers(0, 80), st.integers(1, 3), st.integers(0, 3))
def test_more_never_costs_less(spec: ph.LayerSpec, length: int, more: int, batch: int, others: int) -> None:
    of = {"context_length": 7} if spec.source == "cross" else {}
    # where chunks or links end, the next token sees fewer keys
    steps = (prefill, training_step, decode_step) if isinstance(spec.attention.pattern, ph.Band) else (prefill,)
    for work in steps:
        small = work(spec, length, batch=batch, **of)
        if work is prefill:  # a narrow latent takes fewer operations absorbed
            assert small.useful <= small.executed
        for larger in (
            work(spec, length + more, batch=batch, **of),
            work(spec, length, batch=batch + others, **of),
            work(spec, length, batch=batch, precision="float32", **of),
        ):
            assert larger.useful >= small.useful
            assert larger.executed >= small.executed
            assert larger.moved >= small.moved
            assert larger.temporary >= small.temporary


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: prefill(layer("grouped"), 0), "length"),
        (lambda: prefill(layer("grouped"), 3, batch=0), "batch"),
        (lambda: decode_step(layer("grouped"), 10), "later keys"),
        (lambda: decode_step(layer("grouped", pattern=ph.Causal()), 3, queries=4), "queries=4 of length=3"),
        (lambda: prefill(ph.LayerSpec(attention=SPECS["grouped"], embed_dim=64, source="cross"), 3), "context_length"),
    ],
)
def test_what_is_wrong_is_said(ask: functools.partial[Work], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        ask()
