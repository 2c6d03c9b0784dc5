"""Bytes of caches: those of published models, those of the real tensors, and what never costs less."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, strategies as st

import polyhead as ph
from polyhead.cost import CacheBytes, Engine, cache_bytes, expanded
from polyhead.errors import SpecError
from tests.walk import walk

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GIB = 2**30


def ideal(name: str, length: int = 1) -> int:
    return cache_bytes(ph.model(name).layers, length).ideal


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-3-8b", 131_072),
        ("deepseek-v2-lite", 31_104),
        ("deepseek-v2", 69_120),
        ("mistral-7b-v0.1", 131_072),
        ("falcon-7b", 8_192),
        ("gpt-oss-120b", 73_728),
    ],
)
def test_a_token_of_published_models(name: str, expected: int) -> None:
    assert ideal(name) == expected


def test_an_expanded_latent() -> None:
    layers = ph.model("deepseek-v2-lite").layers
    whole = [dataclasses.replace(one, attention=expanded(one.attention), latent_norm=None) for one in layers]
    assert cache_bytes(whole, 1).ideal == 276_480
    llama = ph.model("llama-3-8b").layers[0].attention
    assert expanded(llama) is llama


def test_a_window_stops_growing() -> None:
    at_window = ideal("mistral-7b-v0.1", 4096)
    assert at_window == 4096 * 131_072
    assert ideal("mistral-7b-v0.1", 4097) == ideal("mistral-7b-v0.1", 10**6) == at_window


def of_llamas_shape(**changes: object) -> list[ph.LayerSpec]:
    layer = ph.model("llama-3-8b").layers[0]
    return [dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, **changes))] * 32


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"storage": ph.Grouped(num_heads=32, head_dim=128)}, 128),
        ({"storage": ph.Grouped(num_heads=32, num_kv_heads=8, head_dim=128)}, 32),
        ({"storage": ph.Grouped(num_heads=32, num_kv_heads=1, head_dim=128)}, 4),
        (
            {
                "storage": ph.Latent(
                    num_heads=32, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
                )
            },
            9,
        ),
        ({"pattern": ph.SlidingWindow.causal(4096)}, 0.5),
    ],
)
def test_a_quarter_of_a_million_tokens(changes: dict[str, object], expected: float) -> None:
    assert cache_bytes(of_llamas_shape(**changes), 2**18).ideal == expected * GIB


HEADS = ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8)
LATENT = ph.Latent(num_heads=4, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8)
KINDS = {
    "growing": ph.AttentionSpec(storage=HEADS, pattern=ph.Causal()),
    "differential": ph.AttentionSpec(storage=HEADS, pattern=ph.Causal(), weighting=ph.Differential()),
    "latent": ph.AttentionSpec(storage=LATENT, position=ph.Rotary(), pattern=ph.Causal()),
    "window": ph.AttentionSpec(storage=HEADS, pattern=ph.SlidingWindow.causal(5)),
    "first tokens": ph.AttentionSpec(
        storage=HEADS, pattern=ph.Causal() & (ph.SlidingWindow.causal(5) | ph.Global(first=2))
    ),
    "state": ph.AttentionSpec(storage=HEADS, pattern=ph.Causal(), weighting=ph.Linear()),
}


@walk("kind, length, stored, max_seq_len", list(KINDS), [0, 1, 5, 6, 7, 8, 63, 64, 65, 100], list(DTYPES), [None, 100])
def test_real_tensors_take_as_much(kind: str, length: int, stored: str, max_seq_len: int | None) -> None:
    spec, dtype = KINDS[kind], DTYPES[stored]
    cache = ph.cache.new_cache(spec, batch=3, max_seq_len=max_seq_len, dtype=dtype)
    given = (
        None if shape is None else torch.zeros(3, shape[0], length, shape[1], dtype=dtype) for shape in inputs(spec)
    )
    cache.append(*given)
    layer = ph.LayerSpec(attention=spec, embed_dim=32)
    found = cache_bytes([layer], length, batch=3, precision=stored, max_seq_len=max_seq_len)
    assert (found.ideal, found.allocated) == (cache.used_bytes, cache.allocated_bytes)
    assert cache.allocated_bytes == sum(tensor.nbytes for tensor in cache._tensors.values())


def inputs(spec: ph.AttentionSpec) -> list[tuple[int, int] | None]:
    shapes = spec.input_shapes()
    return [shapes["key"], shapes["value"]]


@pytest.mark.parametrize("tokens", [1, 17])
def test_real_tensors_of_a_context(tokens: int) -> None:
    spec = ph.AttentionSpec(storage=HEADS)
    cache = ph.cache.new_cache(spec, batch=2, source="cross")
    cache.append(torch.zeros(2, 2, tokens, 8), torch.zeros(2, 2, tokens, 8))
    layer = ph.LayerSpec(attention=spec, embed_dim=32, source="cross")
    found = cache_bytes([layer], 9, batch=2, precision="float32", context_length=tokens)
    assert (found.ideal, found.allocated) == (cache.used_bytes, cache.allocated_bytes)


def test_what_an_engine_reserves() -> None:
    plain, window = (ph.LayerSpec(attention=KINDS[name], embed_dim=32) for name in ("growing", "window"))
    row = 2 * 2 * 8 * 2  # keys and values of two heads of 8, in bf16
    assert cache_bytes([plain], 17) == CacheBytes(ideal=17 * row, reserved=32 * row, allocated=64 * row)
    assert cache_bytes([window], 17).reserved == 32 * row
    slides = Engine(page=4, keeps_windows_whole=False)
    assert cache_bytes([window], 17, engine=slides).reserved == 8 * row
    assert cache_bytes([plain], 17, engine=slides).reserved == 20 * row


def test_formats_that_ours_do_not_keep() -> None:
    layer = ph.LayerSpec(attention=KINDS["growing"], embed_dim=32)
    assert cache_bytes([layer], 10, precision="fp8") == CacheBytes(ideal=320, reserved=512, allocated=None)
    assert cache_bytes([layer], 10, precision="cache=int4").ideal == 160
    state = ph.LayerSpec(attention=KINDS["state"], embed_dim=32)
    assert cache_bytes([state], 10, precision="fp8").ideal == cache_bytes([state], 10, precision="float32").ideal


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 300), st.integers(0, 300), st.integers(1, 5), st.integers(1, 5))
def test_more_never_takes_less(kind: str, length: int, more: int, batch: int, others: int) -> None:
    layer = ph.LayerSpec(attention=KINDS[kind], embed_dim=32)
    small, long = cache_bytes([layer], length, batch=batch), cache_bytes([layer], length + more, batch=batch)
    wide = cache_bytes([layer], length, batch=batch + others)
    exact = cache_bytes([layer], length, batch=batch, precision="float32")
    for larger in (long, wide, exact):
        for figure in ("ideal", "reserved", "allocated"):
            assert getattr(larger, figure) >= getattr(small, figure)
    assert small.reserved >= small.ideal <= small.allocated


@given(st.integers(1, 100), st.integers(0, 100), st.integers(0, 200))
def test_a_wider_window_never_takes_less(size: int, more: int, length: int) -> None:
    narrow, wide = (
        ph.LayerSpec(
            attention=dataclasses.replace(KINDS["window"], pattern=ph.SlidingWindow.causal(width)), embed_dim=32
        )
        for width in (size, size + more)
    )
    assert cache_bytes([narrow], length).ideal <= cache_bytes([wide], length).ideal


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"length": -1}, "length"),
        ({"batch": 0}, "batch"),
        ({"max_seq_len": 3}, "max_seq_len=3 is below length=10"),
        ({"context_length": -2}, "context_length"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, int], said: str) -> None:
    layer = ph.LayerSpec(attention=KINDS["growing"], embed_dim=32)
    with pytest.raises(SpecError, match=said):
        cache_bytes([layer], **{"length": 10, **given})


def test_a_layer_without_a_cache_says_so() -> None:
    layer = ph.LayerSpec(attention=ph.AttentionSpec(storage=HEADS), embed_dim=32)
    with pytest.raises(SpecError, match="later keys"):
        cache_bytes([layer], 10)
