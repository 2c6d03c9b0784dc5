"""What is stored for each token: heads, groups, latents."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from polyhead.errors import SpecError
from polyhead.spec import Grouped, Latent

LATENT = {"num_heads": 4, "kv_lora_rank": 6, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 5}


def test_heads_without_groups_are_multi_head() -> None:
    assert Grouped(num_heads=8, head_dim=64) == Grouped(num_heads=8, num_kv_heads=8, head_dim=64)
    assert Grouped(num_heads=8, head_dim=64).kv_heads == 8
    assert Grouped(num_heads=8, num_kv_heads=2, head_dim=64).kv_heads == 2


def test_widths_of_queries_and_keys() -> None:
    assert Grouped(num_heads=8, head_dim=64, v_head_dim=32).qk_head_dim == 64
    assert Latent(**LATENT).qk_head_dim == 3 + 2
    assert Latent(**LATENT).kv_heads == 4, "after expansion every head has its own"


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "message"),
    [
        (8, 3, "num_kv_heads=3 does not divide num_heads=8; use 1, 2, 4 or 8"),
        (4, 8, "num_kv_heads=8 does not divide num_heads=4; use 1, 2 or 4"),
        (1, 2, "num_kv_heads=2 does not divide num_heads=1; use 1"),
    ],
)
def test_groups_must_be_of_one_size(num_heads: int, num_kv_heads: int, message: str) -> None:
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        Grouped(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=4)


@pytest.mark.parametrize("name", ["num_heads", "num_kv_heads", "head_dim", "v_head_dim"])
def test_sizes_of_groups_are_positive(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name}=0 is not allowed; give a whole number of at least 1"):
        Grouped(**{"num_heads": 4, "head_dim": 8, name: 0})


@pytest.mark.parametrize("name", [*LATENT, "q_lora_rank"])
def test_sizes_of_a_latent_are_positive(name: str) -> None:
    smallest = 0 if name == "qk_rope_head_dim" else 1
    with pytest.raises(SpecError, match=f"{name}={smallest - 1} is not allowed; .* at least {smallest}"):
        Latent(**{**LATENT, name: smallest - 1})


def test_a_latent_needs_no_rope_key() -> None:
    assert Latent(**{**LATENT, "qk_rope_head_dim": 0}).qk_head_dim == 3


@pytest.mark.parametrize(
    "build", [lambda: Grouped(num_heads=None, head_dim=4), lambda: Latent(**LATENT | {"v_head_dim": None})]
)
def test_none_is_no_size_where_it_is_no_default(build: Callable[[], Any]) -> None:
    with pytest.raises(SpecError, match="=None is not allowed"):
        build()
