"""Query and key heads laid out by map, key/value head and group, as `AttentionSpec.map_of` says, without a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import polyhead as ph
from polyhead.storage import grouped
from tests.inputs import spec

WEIGHTINGS = [ph.Softmax(), ph.Differential(), ph.Differential(form="diffllama"), ph.Differential(form="clipped")]


@pytest.mark.parametrize("storage", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_each_head_meets_the_maps_that_the_spec_names(storage: str, weighting: Any) -> None:
    whole = spec(storage, weighting=weighting)
    query_maps, key_maps = (whole.input_shapes()[name][0] for name in ("query", "key"))
    queries = torch.arange(query_maps).view(1, -1, 1, 1)
    keys = torch.arange(key_maps).view(1, -1, 1, 1)
    query, key = grouped.by_group(queries, whole), grouped.keys_by_map(keys, whole)
    assert query.shape == (1, whole.num_maps, whole.num_kv_heads, whole.group_size, 1, 1)
    assert key.shape == (1, whole.num_maps, whole.num_kv_heads, 1, 1)
    for head in range(whole.num_heads):
        for index in range(whole.num_maps):
            kv_head, place = divmod(head, whole.group_size)
            met = query[0, index, kv_head, place].item(), key[0, index, kv_head].item()
            assert met == whole.map_of(head, index)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_nothing_is_copied(weighting: Any) -> None:
    whole = spec("gqa", weighting=weighting)
    shapes = whole.input_shapes()
    query, key = (torch.zeros(2, shapes[name][0], 3, 8) for name in ("query", "key"))
    assert grouped.by_group(query, whole).untyped_storage().data_ptr() == query.untyped_storage().data_ptr()
    assert grouped.keys_by_map(key, whole).untyped_storage().data_ptr() == key.untyped_storage().data_ptr()


def test_heads_are_laid_out_in_order_and_an_empty_batch_too() -> None:
    assert grouped.heads_as(torch.arange(6).view(1, 6, 1), 3, 2).flatten().tolist() == list(range(6))
    assert grouped.heads_as(torch.zeros(0, 6, 0, 4), 3, 2).shape == (0, 3, 2, 0, 4)
