"""The cache of sums: one size at any length, dtypes of the sums, and what sums cannot do."""

from __future__ import annotations

import pytest
import torch

import polyhead as ph
from polyhead.cache import StateCache, new_cache
from tests.cache.helpers import Kind, Tokens, assert_same_content, content, held, of_kind
from tests.inputs import spec
from tests.tolerances import assert_close


@pytest.mark.parametrize("storage", ["mha", "gqa", "mqa", "mla"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_holds_a_matrix_and_a_vector_for_each_kv_head(storage: str, dtype: torch.dtype) -> None:
    whole = spec(storage, pattern=ph.Causal(), weighting=ph.Linear())
    cache = new_cache(whole, batch=3, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    shape = (3, whole.num_kv_heads, whole.qk_head_dim)
    assert {(x.shape, x.dtype) for x in held(cache)} == {((*shape, whole.v_head_dim), wide), (shape, wide)}
    numbers = whole.num_kv_heads * whole.qk_head_dim * (whole.v_head_dim + 1)
    assert cache.used_bytes == cache.allocated_bytes == 3 * numbers * wide.itemsize


@pytest.mark.parametrize("chunk", [1, 1000])
def test_the_same_bytes_hold_a_thousand_tokens_and_a_hundred_thousand(chunk: int) -> None:
    storage = ph.Grouped(num_heads=1, head_dim=2)
    whole = ph.AttentionSpec(storage=storage, pattern=ph.Causal(), weighting=ph.Linear())
    cache = new_cache(whole, batch=1)
    most = 100_000 if chunk == 1000 else 1000
    token = torch.full((1, 1, chunk, 2), 0.5)
    seen = set()
    for _ in range(0, most, chunk):
        cache.append(token, token)
        seen.add((cache.used_bytes, cache.allocated_bytes))
    assert cache.length == most
    assert seen == {((2 * 2 + 2) * 4, (2 * 2 + 2) * 4)}
    output = ph.attend(token[:, :, :1], token[:, :, :1], token[:, :, :1], whole, cache=cache)
    assert_close(output, torch.full((1, 1, 1, 2), 0.5), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_sums_stay_as_wide_as_they_began(dtype: torch.dtype) -> None:
    tokens = Tokens.draw(Kind(spec("gqa", pattern=ph.Causal(), weighting=ph.Linear()), StateCache), dtype=dtype)
    cache = tokens.filled(6)
    before = {x.dtype for x in held(cache)}
    cache.crop([6, 0])
    cache.reorder([1, 0, 0])
    assert {x.dtype for x in held(cache)} == {x.dtype for x in held(cache.clone())} == before
    assert before == {torch.float64 if dtype == torch.float64 else torch.float32}


def test_sums_over_many_small_terms_are_not_made_in_half_precision() -> None:
    """In bfloat16 a sum of ones stops at 256."""
    whole = ph.AttentionSpec(
        storage=ph.Grouped(num_heads=1, head_dim=2), pattern=ph.Causal(), weighting=ph.Linear(feature_map="relu")
    )
    cache = new_cache(whole, batch=1, dtype=torch.bfloat16)
    one = torch.ones(1, 1, 1, 2, dtype=torch.bfloat16)
    for _ in range(300):
        cache.append(one, one)
    assert {float(n) for x in held(cache) for n in x.unique()} == {300.0}


@of_kind("state")
def test_a_sum_cannot_lose_a_token_and_says_what_can_be_done(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    before = content(cache)
    message = r"crop cannot leave 5 of the 6 tokens of sequence 1: they are one sum; clone\(\) the cache .* to 0"
    with pytest.raises(ph.UnsupportedError, match=message):
        cache.crop([0, 5])
    assert_same_content(content(cache), before)
    assert_close(tokens.decode(cache, 6), tokens.expected()[:, :, 6:], torch.float32)


@of_kind("state")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_stays_until_the_sums_are_emptied(kind: Kind, bad: float) -> None:
    tokens = Tokens.draw(kind)
    cache, expected = tokens.filled(6), tokens.expected()
    piece = tokens.piece(cache, 6, 7)
    piece["key"][1] = bad
    ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache)
    later = tokens.decode(cache, 7, 9)
    assert later[1].isnan().all()
    assert_close(later[0], expected[0, :, 7:9], torch.float32)
    cache.crop([9, 0])
    assert all(x.isfinite().all() for x in held(cache))
    output = ph.attend(**tokens.ragged(cache, [9, 0], [3, 3]), spec=kind.spec, params=tokens.params(), cache=cache)
    assert_close(output[0], expected[0, :, 9:], torch.float32)
    assert_close(output[1], expected[1, :, :3], torch.float32)


@of_kind("state")
def test_a_masked_token_adds_nothing(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    before = content(cache)
    piece = {n: x if x is None else torch.full_like(x, torch.nan) for n, x in tokens.piece(cache, 6, 9).items()}
    mask = torch.zeros(2, 3, dtype=torch.bool)
    cache.append(piece["key"], piece["value"], params=tokens.params(), key_mask=mask)
    assert cache.lengths == (9, 9)
    cache.lengths = (6, 6)
    assert_same_content(content(cache), before)


@of_kind("state")
def test_weights_are_refused_and_said_why(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    before = content(cache)
    with pytest.raises(ph.UnsupportedError, match=r"sums over keys have no weights.*a cache of sums has no keys"):
        tokens.decode(cache, 6, return_weights=True)
    assert_same_content(content(cache), before)


@of_kind("state")
@pytest.mark.parametrize("kernel", ["plain", "dense"])
def test_no_kernel_with_a_score_matrix_takes_sums(kind: Kind, kernel: str) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    before = content(cache)
    with pytest.raises(
        ph.UnsupportedError, match=f"kernel='{kernel}' does not run this: .*; use kernel='auto', .*linear"
    ):
        tokens.decode(cache, 6, kernel=kernel)
    assert_same_content(content(cache), before)


def test_the_sums_of_a_latent_need_its_up_projections() -> None:
    kind = Kind(spec("mla", pattern=ph.Causal(), weighting=ph.Linear()), StateCache)
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    before = content(cache)
    with pytest.raises(ph.ShapeError, match="params lacks 'w_uk'"):
        cache.append(tokens.piece(cache, 6)["key"])
    assert_same_content(content(cache), before)
