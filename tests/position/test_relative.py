"""Learned relative positions: which entry a pair uses, and what is made of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import polyhead as ph
from polyhead.position import relative
from tests.inputs import spec
from tests.tolerances import assert_close

PLACES = torch.tensor([[0, 3, 9], [4, 4, 5]])


def of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "position",
    [
        ph.RelativeBias.clipped(max_distance=3),
        ph.RelativeBias.shaw(max_distance=2),
        ph.RelativeBias.t5(num_buckets=8, max_distance=6),
        ph.RelativeBias.t5(num_buckets=8, max_distance=6, bidirectional=False),
    ],
    ids=repr,
)
def test_a_pair_uses_the_entry_of_its_clipped_distance(position: Any) -> None:
    entries = relative.entries(spec(position=position), PLACES, torch.arange(12)[None])
    assert entries.shape == (2, 3, 12)
    limit = position.max_distance
    for batch, row in itertools.product(range(2), range(3)):
        query = int(PLACES[batch, row])
        expected = [position.buckets()[min(max(key - query, -limit), limit) + limit] for key in range(12)]
        assert entries[batch, row].tolist() == expected


def test_a_table_gives_each_head_its_own_number() -> None:
    table, entries = of(5, 4), torch.tensor([[[0, 4], [2, 2], [1, 3]]])
    bias = relative.bias(table, entries)
    assert bias.shape == (1, 4, 3, 2)
    for head in range(4):
        assert torch.equal(bias[0, head], table[entries[0], head])


@pytest.mark.parametrize("lead", [(2,), (2, 4), (2, 1, 2, 3)])
@pytest.mark.parametrize("entries_batch", [1, 2])
def test_shaw_s_products_are_those_of_a_vector_for_each_pair(lead: tuple[int, ...], entries_batch: int) -> None:
    """No vector is formed for a pair; this forms them."""
    entries = torch.randint(0, 5, (entries_batch, 3, 6), generator=torch.Generator().manual_seed(1))
    pairs = entries.view(entries_batch, *(1,) * (len(lead) - 1), 3, 6)
    query, keys = of(*lead, 3, 8), of(5, 8)
    scores = relative.key_scores(query, keys, entries)
    assert_close(scores, (query[..., None, :] * keys[pairs]).sum(-1), torch.float64)
    weights, values = of(*lead, 3, 6), of(5, 7)
    mixed = relative.mixed_values(weights, values, entries)
    assert_close(mixed, (weights[..., None] * values[pairs]).sum(-2), torch.float64)
