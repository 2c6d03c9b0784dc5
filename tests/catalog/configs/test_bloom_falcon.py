"""Bloom's ALiBi, and Falcon's heads and positions."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.catalog.configs import layer_specs
from polyhead.errors import UnsupportedError
from polyhead.spec import Alibi, Rotary, Softmax
from tests.catalog.configs.files import BLOOM, FALCON, only

NEW = {"new_decoder_architecture": True}


def test_bloom() -> None:
    layer = only(BLOOM)
    assert layer.attention.position == Alibi()
    assert layer.attention.weighting == Softmax()
    assert (layer.attention.num_kv_heads, layer.qkv_bias, layer.out_bias) == (4, True, True)


@pytest.mark.parametrize(
    ("fields", "num_kv_heads"),
    [
        ({}, 1),
        ({"num_kv_heads": 8}, 1),  # as falcon-7b's file says, whose code looks at multi_query alone
        ({"multi_query": False}, 8),
        ({"multi_query": False, "num_kv_heads": 8}, 8),
        (NEW | {"num_kv_heads": 2}, 2),
        (NEW, 8),
    ],
)
def test_falcons_heads(fields: dict[str, Any], num_kv_heads: int) -> None:
    assert only(FALCON | fields).attention.num_kv_heads == num_kv_heads


def test_falcons_groups_need_the_new_architecture() -> None:
    with pytest.raises(
        UnsupportedError, match=r"num_kv_heads .* the file says 2, and without groups each of 8 has its"
    ):
        layer_specs(FALCON | {"multi_query": False, "num_kv_heads": 2})


def test_falcons_positions() -> None:
    assert only(FALCON).attention.position == Rotary(theta=10_000.0)  # its files have no base
    assert only(FALCON | {"rope_theta": 5000.0}).attention.position == Rotary(theta=5000.0)
    halved = tuple(slope / 8**0.5 for slope in Alibi().head_slopes(8))
    assert only(FALCON | {"alibi": True}).attention.position == Alibi(slopes=halved)


def test_falcons_biases() -> None:
    layer = only(FALCON | {"bias": True})
    assert (layer.qkv_bias, layer.out_bias) == (True, True)
    assert not only(FALCON).qkv_bias
