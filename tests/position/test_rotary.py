"""RoPE in torch: equal to the oracle's, rounded once, and turned for each query where frequencies are the query's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead import oracle
from polyhead.position import rotary
from tests.inputs import spec
from tests.tolerances import assert_close

ROTARIES = {
    "half": ph.Rotary(),
    "interleaved": ph.Rotary(pairs="interleaved"),
    "reversed": ph.Rotary(direction="reversed"),
    "partial": ph.Rotary(rotary_dim=4),
    "partial, interleaved": ph.Rotary(rotary_dim=4, pairs="interleaved"),
    "with a factor on cos and sin": ph.Rotary(scaling=ph.YarnScaling(factor=8.0, original_max_seq_len=16)),
}
DYNAMIC = ph.Rotary(theta=50.0, scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=4))


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("position", ROTARIES.values(), ids=ROTARIES)
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_turning_equals_the_oracle_s(position: ph.Rotary, start: int, dtype: torch.dtype) -> None:
    whole = spec(position=position)
    x, places = draw(2, 4, 5, start + 8), np.array([[0, 1, 2, 3, 4], [7, 3, 1000, 0, 2]])
    turned = rotary.rotate(torch.tensor(x, dtype=dtype), torch.tensor(places), whole, start=start)
    angles = places[:, None, :, None] * position.frequencies(whole.rotary_dim)
    assert turned.dtype == dtype
    assert_close(turned, oracle.rotate(x, angles, position, start=start, width=whole.rotary_dim), dtype)


def test_positions_shared_by_the_batch_turn_all_alike() -> None:
    whole = spec(position=ph.Rotary())
    x, places = torch.tensor(draw(2, 4, 5, 8)), torch.arange(5)
    batched = rotary.rotate(x, places.expand(2, 5), whole, start=0)
    assert torch.equal(rotary.rotate(x, places[None], whole, start=0), batched)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    """Computed in float32 and rounded at the end, so the result is the exact one's nearest neighbour."""
    whole = spec(position=ph.Rotary())
    x = torch.tensor(draw(2, 4, 5, 8)).to(dtype)
    places = torch.arange(5)[None] + 100_000
    turned = rotary.rotate(x, places, whole, start=0)
    exact = rotary.rotate(x.double(), places, whole, start=0)
    assert turned.dtype == dtype
    assert (turned == exact.to(dtype)).float().mean() > 0.99, "but for ties"


def test_angles_are_exact_at_a_million_tokens() -> None:
    whole = spec(position=ph.Rotary())
    x, places = draw(1, 4, 3, 8), np.array([1_000_000, 1_000_001, 4_000_000])
    turned = rotary.rotate(torch.tensor(x, dtype=torch.float32), torch.tensor(places)[None], whole, start=0)
    angles = places[:, None] * whole.position.frequencies(8)
    assert_close(turned, oracle.rotate(x, angles, whole.position, start=0, width=8), torch.float32)


@pytest.mark.parametrize("position", [DYNAMIC, ph.Rotary(theta=50.0)])
@pytest.mark.parametrize("storage", ["gqa", "mla"])
def test_each_query_meets_keys_turned_by_its_own_frequencies(position: Any, storage: str) -> None:
    whole = spec(storage, position=position)
    query, key = draw(2, 1, 2, 2, 3, whole.qk_head_dim), draw(2, 1, 2, 6, whole.qk_head_dim)
    places = np.array([[2, 9, 5], [11, 0, 4]]), np.arange(6)[None]
    turned, keys = rotary.rotate_for_queries(
        torch.tensor(query), torch.tensor(key), tuple(map(torch.tensor, places)), whole
    )
    where = {"start": whole.rotary_offset, "width": 8}
    frequencies = np.broadcast_to(position.frequencies(8, places[0]), (2, 3, 4))
    query_angles = (places[0][..., None] * frequencies)[:, None, None, None]
    assert_close(turned, oracle.rotate(query, query_angles, position, **where), torch.float64)
    key_angles = (np.arange(6)[:, None] * frequencies[:, :, None])[:, None, None]
    expected = oracle.rotate(key[..., None, :, :], key_angles, position, **where)
    assert_close(keys.expand(2, 1, 2, 3, 6, -1), expected, torch.float64)
    assert keys.shape[3] == (3 if position.per_query else 1), "formed once where all queries see the same"


def test_a_gradient_passes_through_the_turn() -> None:
    whole = spec(position=ROTARIES["partial"])
    x = torch.tensor(draw(1, 4, 3, 8), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotary.rotate(x, torch.arange(3)[None], whole, start=0), (x,))
