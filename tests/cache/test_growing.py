"""The cache that keeps every token: its bytes, how it finds room, and tokens a million places back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polyhead as ph
from polyhead.cache import GrowingCache, new_cache
from tests.cache.helpers import KINDS, Kind, Tokens, held, of_kind
from tests.inputs import VARIED, spec
from tests.tolerances import assert_close

FAR = 1_000_000


def growing(storage: str = "gqa", **choices: Any) -> Kind:
    return Kind(spec(storage, **{"pattern": ph.Causal(), **choices}), GrowingCache)


# --- bytes


@pytest.mark.parametrize(("rank", "rope"), [(6, 8), (512, 64), (5, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_latent_token_is_its_latent_and_its_rope_key_and_nothing_else(
    rank: int, rope: int, dtype: torch.dtype
) -> None:
    storage = ph.Latent(num_heads=4, kv_lora_rank=rank, qk_nope_head_dim=4, qk_rope_head_dim=rope, v_head_dim=5)
    cache = new_cache(ph.AttentionSpec(storage=storage, pattern=ph.Causal()), batch=3, max_seq_len=20, dtype=dtype)
    cache.append(torch.zeros(3, 1, 7, rank + rope, dtype=dtype))
    assert [x.shape for x in held(cache)] == [(3, 1, 20, rank + rope)]
    assert cache.allocated_bytes == 3 * 20 * (rank + rope) * dtype.itemsize
    assert cache.used_bytes == 3 * 7 * (rank + rope) * dtype.itemsize


@pytest.mark.parametrize("weighting", [ph.Softmax(), ph.Differential()], ids=["one-map", "two-maps"])
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("v_head_dim", [None, 3])
def test_a_grouped_token_is_a_key_for_each_map_and_a_value_of_each_kv_head(
    weighting: Any, kv_heads: int, v_head_dim: int | None
) -> None:
    storage = ph.Grouped(num_heads=8, num_kv_heads=kv_heads, head_dim=4, v_head_dim=v_head_dim)
    whole = ph.AttentionSpec(storage=storage, pattern=ph.Causal(), weighting=weighting)
    maps = 2 if isinstance(weighting, ph.Differential) else 1
    numbers = kv_heads * (maps * 4 + (v_head_dim or maps * 4))
    cache = new_cache(whole, batch=3, max_seq_len=20)
    assert sum(x.numel() for x in held(cache)) == 3 * 20 * numbers
    assert (cache.allocated_bytes, cache.used_bytes) == (3 * 20 * numbers * 4, 0)
    cache.append(torch.zeros(3, kv_heads * maps, 7, 4), torch.zeros(3, kv_heads, 7, v_head_dim or maps * 4))
    assert (cache.allocated_bytes, cache.used_bytes) == (3 * 20 * numbers * 4, 3 * 7 * numbers * 4)


@of_kind("growing")
def test_used_bytes_count_each_sequences_own_tokens(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache(max_seq_len=20)
    a_token = cache.allocated_bytes // 40
    tokens.decode(cache, 0, 5, lengths=[5, 2])
    assert cache.used_bytes == 7 * a_token
    cache.crop([3, 2])
    assert cache.used_bytes == 5 * a_token
    cache.reorder([0, 0, 1])
    assert (cache.used_bytes, cache.allocated_bytes) == (8 * a_token, 60 * a_token)


# --- room


def addresses(cache: GrowingCache) -> tuple[int, ...]:
    return tuple(x.data_ptr() for x in held(cache))


@of_kind("growing")
def test_with_max_seq_len_the_room_is_made_once(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache(max_seq_len=12)
    at, allocated = addresses(cache), cache.allocated_bytes
    for start in range(12):
        tokens.decode(cache, start, start + 1)
    cache.crop(3)
    tokens.decode(cache, 3)
    cache.reset()
    tokens.append(cache, 0)
    assert (addresses(cache), cache.allocated_bytes) == (at, allocated)


@of_kind("growing")
def test_without_it_the_room_doubles_and_what_is_there_survives(kind: Kind) -> None:
    tokens = Tokens.draw(kind, 300)
    cache = tokens.new_cache()
    assert cache.allocated_bytes == 0
    outputs, moves, slots = [], 0, []
    for start in range(0, 300, 3):
        at = addresses(cache)
        outputs.append(tokens.decode(cache, start, start + 3))
        moves += addresses(cache) != at
        slots.append(cache.slots)
    assert sorted(set(slots)) == [64, 128, 256, 512]
    assert moves == 4
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float32)


def test_a_long_prompt_gets_the_room_that_it_needs() -> None:
    tokens = Tokens.draw(KINDS["growing"], 200)
    cache = tokens.new_cache()
    tokens.append(cache, 0, 199)
    assert cache.slots == 199
    tokens.append(cache, 199)
    assert cache.slots == 398


def test_room_that_was_made_is_kept_for_what_comes_after_a_crop() -> None:
    tokens = Tokens.draw(KINDS["growing"], 200)
    cache = tokens.filled(150)
    at = addresses(cache)
    cache.crop(1)
    tokens.append(cache, 1)
    assert addresses(cache) == at


def test_a_mask_moves_with_the_rest() -> None:
    mask = np.random.default_rng(0).random((2, 150)) < 0.6
    tokens = Tokens.draw(KINDS["growing"], 150).masked(mask)
    cache, outputs = tokens.new_cache(), []
    for start in range(0, 150, 5):
        now = slice(start, start + 5)
        outputs.append(tokens.decode(cache, start, start + 5, key_mask=torch.tensor(mask[:, now])))
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float32)


class Allocations(TorchDispatchMode):
    """Notes how large a tensor each operation makes that is no view of given ones."""

    def __init__(self, *given: torch.Tensor) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in given}
        self.made: dict[int, str] = {}

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.made.setdefault(x.untyped_storage().nbytes(), str(operation))
        return result


# linear weighting has sums here, and a pattern says nothing about what is made for one query
DECODED = {name: choices for name, choices in VARIED.items() if name not in ("linear", "masked")}


@pytest.mark.parametrize("choices", DECODED.values(), ids=[name.replace(" ", "-") for name in DECODED])
@pytest.mark.parametrize("storage", ["mha", "gqa", "mqa", "mla"])
@pytest.mark.parametrize("lengths", [[1000, 1000], [1000, 990]], ids=["even", "ragged"])
def test_decoding_a_token_makes_no_tensor_as_large_as_the_cache(
    choices: dict[str, Any], storage: str, lengths: list[int]
) -> None:
    tokens = Tokens.draw(growing(storage, **choices), 1001)
    cache = tokens.new_cache(max_seq_len=1100)
    tokens.append(cache, 0, 1000, lengths=lengths)
    token, params = tokens.piece(cache, 1000), tokens.params()
    given = [x for x in (*token.values(), *params.values()) if x is not None]
    with Allocations(*held(cache), *given) as noted:
        ph.attend(**token, spec=tokens.kind.spec, params=params, cache=cache)
    smallest = min(x[:, :, :1000].numel() * x.element_size() for x in held(cache))
    largest = max(noted.made)
    assert largest < smallest, f"{noted.made[largest]} makes {largest} bytes, and the cache's keys are {smallest}"


def test_allocations_are_noted() -> None:
    x = torch.zeros(10)
    with Allocations(x) as noted:
        torch.cat([x[:5], x[5:]]).add_(1.0)
        x[2:4].add_(1.0)
    assert max(noted.made) == 40
    with Allocations(x) as noted:
        x[2:4].add_(1.0)
    assert not noted.made


# --- weights


@of_kind("growing")
def test_weights_are_those_without_a_cache(kind: Kind) -> None:
    tokens = Tokens.draw(kind, dtype=torch.float64)
    cache = tokens.new_cache()
    given = {**tokens.piece(cache, 0), "spec": kind.spec, "params": tokens.params(), "return_weights": True}
    whole, whole_weights = ph.attend(**given)
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        output, weights = tokens.decode(cache, start, stop, return_weights=True)
        assert_close(output, whole[:, :, start:stop], torch.float64)
        assert weights.shape[-1] == stop
        assert_close(weights, whole_weights[:, :, start:stop, :stop], torch.float64, what="weights")


def test_weights_of_linear_attention_that_keeps_rows() -> None:
    scaling = ph.DynamicNTKScaling(factor=3.0, original_max_seq_len=4)
    kind = growing(weighting=ph.Linear(), position=ph.Rotary(theta=50.0, scaling=scaling))
    tokens = Tokens.draw(kind, dtype=torch.float64)
    cache = tokens.filled(7)
    output, weights = tokens.decode(cache, 7, return_weights=True)
    expected, expected_weights = tokens.inputs.oracle(return_weights=True)
    assert_close(output, expected[:, :, 7:], torch.float64)
    assert_close(weights, expected_weights[:, :, 7:], torch.float64, what="weights")


# --- crop


@of_kind("growing")
@pytest.mark.parametrize("left", [0, 1, 6, 8])
def test_any_number_of_tokens_can_be_cropped(kind: Kind, left: int) -> None:
    tokens, other = Tokens.draw(kind), Tokens.draw(kind, seed=1)
    cache = tokens.filled(left)
    other.decode(cache, left, 9)
    cache.crop(left)
    assert_close(tokens.decode(cache, left), tokens.expected()[:, :, left:], torch.float32)


@of_kind("growing")
def test_each_sequence_is_cropped_to_its_own_length(kind: Kind) -> None:
    tokens, expected = Tokens.draw(kind), Tokens.draw(kind).expected()
    cache = tokens.filled(9)
    cache.crop(torch.tensor([3, 8]))
    assert cache.lengths == (3, 8)
    output = ph.attend(**tokens.ragged(cache, [3, 8], [4, 4]), spec=kind.spec, params=tokens.params(), cache=cache)
    assert_close(output[0], expected[0, :, 3:7], torch.float32)
    assert_close(output[1], expected[1, :, 8:12], torch.float32)


@of_kind("growing")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_is_left_of_a_token_that_is_not_finite_and_was_cropped(kind: Kind, bad: float) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    piece = {n: x if x is None else torch.full_like(x, bad) for n, x in tokens.piece(cache, 6, 9).items()}
    ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache)
    cache.crop([6, 0])
    output = ph.attend(**tokens.ragged(cache, [6, 0], [6, 6]), spec=kind.spec, params=tokens.params(), cache=cache)
    expected = tokens.expected()
    assert_close(output[0], expected[0, :, 6:], torch.float32)
    assert_close(output[1], expected[1, :, :6], torch.float32)


@of_kind("growing")
def test_a_nan_is_seen_by_what_comes_after_it_in_its_sequence_and_by_nothing_else(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    piece = tokens.piece(cache, 6, 9)
    piece["key"][1, :, 1] = torch.nan  # token 7
    output = ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache)
    output = torch.cat([output, tokens.decode(cache, 9)], dim=2)
    expected = tokens.expected()[:, :, 6:]
    assert output[1, :, 1:].isnan().all()
    assert_close(output[1, :, :1], expected[1, :, :1], torch.float32)
    assert_close(output[0], expected[0], torch.float32)


@of_kind("growing")
def test_a_masked_nan_is_not_even_stored(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    piece = tokens.piece(cache, 0, 6)
    piece["key"][1, :, 1] = torch.nan
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 1] = False
    ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache, key_mask=mask)
    assert all(x.isfinite().all() for x in held(cache))


# --- far along


@pytest.mark.parametrize("position", [ph.Alibi(), ph.Rotary(theta=50.0)], ids=repr)
def test_a_token_at_a_million_sees_the_million_before_it(position: Any) -> None:
    storage = ph.Grouped(num_heads=1, head_dim=4)
    kind = Kind(ph.AttentionSpec(storage=storage, pattern=ph.Causal(), position=position), GrowingCache)
    # few enough are seen that each has a weight to get wrong
    mask = np.random.default_rng(0).random((1, FAR + 1)) < 1e-4
    mask[:, -10:] = True
    tokens = Tokens.draw(kind, FAR + 1, batch=1).masked(mask)
    cache = tokens.new_cache(max_seq_len=FAR + 1)
    for start in range(0, FAR, 250_000):
        now = slice(start, start + 250_000)
        tokens.append(cache, start, start + 250_000, key_mask=torch.tensor(mask[:, now]))
    output = tokens.decode(cache, FAR, key_mask=torch.tensor(mask[:, FAR:]))
    learned = tokens.inputs.learned
    expected = ph.oracle.attend(
        learned["query"][:, :, FAR:], learned["key"], learned["value"], kind.spec, key_mask=mask
    )
    assert_close(output, expected, torch.float32)
