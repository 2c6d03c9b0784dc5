"""The cache of cross-attention: a context that comes once, and the queries that are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.cache import ContextCache, new_cache
from tests.cache.helpers import Kind, Tokens, assert_same_content, content, held, held_bytes, of_kind
from tests.inputs import spec
from tests.tolerances import assert_close

PATTERNS = {
    "full": ph.Full(),
    "causal": ph.Causal(),
    "symmetric": ph.SlidingWindow.symmetric(2),
    "last": ph.Global(first=1, last=1) & ph.Causal(),
    "global": ph.Global(first=1, last=2),
    "random over all": ph.RandomLinks(per_query=2, seed=0, span="all"),
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=[name.replace(" ", "-") for name in PATTERNS])
@pytest.mark.parametrize(
    "choices",
    [{}, {"position": ph.Rotary()}, {"position": ph.Alibi()}, {"weighting": ph.Differential()}],
    ids=["plain", "rope", "alibi", "differential"],
)
def test_any_pattern_decodes_against_a_context(pattern: Any, choices: dict[str, Any]) -> None:
    tokens = Tokens.draw(Kind(spec("gqa", pattern=pattern, **choices), ContextCache), context=7, dtype=torch.float64)
    cache = tokens.new_cache()
    outputs = [tokens.decode(cache, 0, 4), *(tokens.decode(cache, n, n + 1) for n in range(4, 12))]
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float64)


@pytest.mark.parametrize("pattern", [ph.Full(), ph.Causal()], ids=repr)
@pytest.mark.parametrize("position", [ph.NoPosition(), ph.Rotary()], ids=repr)
def test_linear_weighting_keeps_a_contexts_rows(pattern: Any, position: Any) -> None:
    whole = spec("gqa", pattern=pattern, position=position, weighting=ph.Linear())
    tokens = Tokens.draw(Kind(whole, ContextCache), context=7, dtype=torch.float64)
    cache = tokens.new_cache()
    outputs = [tokens.decode(cache, n, n + 3) for n in range(0, 12, 3)]
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float64)


@of_kind("context")
def test_it_holds_the_contexts_rows_and_nothing_else(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache(max_seq_len=50)
    assert (cache.allocated_bytes, cache.used_bytes, cache.context_length, cache.has_context) == (0, 0, 0, False)
    a_token = sum(heads * width for name, (heads, width) in shapes(kind).items() if name != "query") * 4
    for start in range(0, 12, 4):
        tokens.decode(cache, start, start + 4)
        assert cache.allocated_bytes == cache.used_bytes == held_bytes(cache) == 2 * 5 * a_token
    assert (cache.context_length, cache.has_context) == (5, True)


def shapes(kind: Kind) -> dict[str, tuple[int, int]]:
    return {name: shape for name, shape in kind.spec.input_shapes().items() if shape is not None}


@of_kind("context")
def test_a_part_of_a_larger_tensor_does_not_keep_the_whole(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    piece = tokens.piece(cache, 0, 0)
    larger = {n: x if x is None else torch.cat([x, torch.zeros_like(x)]) for n, x in piece.items() if n != "query"}
    cache.append(**{n: x if x is None else x[:2] for n, x in larger.items()}, params=tokens.params())
    assert held_bytes(cache) == cache.allocated_bytes


@of_kind("context")
def test_a_second_context_is_refused_until_a_reset(kind: Kind) -> None:
    tokens, other = Tokens.draw(kind), Tokens.draw(kind, context=9, seed=1)
    cache = tokens.filled(6)
    before = content(cache)
    again = tokens.piece(tokens.new_cache(), 6)
    message = r"the cache has a context of 5 tokens already, which is fixed; give none, or reset\(\) the cache"
    with pytest.raises(ph.ShapeError, match=message):
        ph.attend(**again, spec=kind.spec, params=tokens.params(), cache=cache)
    with pytest.raises(ph.ShapeError, match=message):
        cache.append(again["key"], again["value"], params=tokens.params())
    assert_same_content(content(cache), before)
    assert_close(tokens.decode(cache, 6, 9), tokens.expected()[:, :, 6:9], torch.float32)
    cache.reset()
    assert not cache.has_context
    assert_close(other.decode(cache, 0), other.expected(), torch.float32)
    assert cache.context_length == 9


@of_kind("context")
def test_queries_without_a_context_see_nothing(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    nothing = {n: x if n == "query" or x is None else x[:, :, :0] for n, x in tokens.piece(cache, 0, 3).items()}
    output = ph.attend(**nothing, spec=kind.spec, params=tokens.params(), cache=cache)
    assert output.shape == (2, 4, 3, kind.spec.v_head_dim)
    assert not output.any()
    assert (cache.lengths, cache.has_context) == ((3, 3), False)


def test_lengths_count_queries_and_a_crop_takes_queries_alone() -> None:
    tokens = Tokens.draw(Kind(spec("gqa", pattern=ph.Causal(), position=ph.Rotary()), ContextCache), context=9)
    cache, expected = tokens.filled(6), tokens.expected()
    assert cache.lengths == (6, 6)
    cache.crop([2, 6])
    assert (cache.lengths, cache.context_length) == ((2, 6), 9)
    output = ph.attend(**tokens.ragged(cache, [2, 6], [5, 5]) | nothing_more(cache), spec=tokens.kind.spec, cache=cache)
    assert_close(output[0], expected[0, :, 2:7], torch.float32)
    assert_close(output[1], expected[1, :, 6:11], torch.float32)


def nothing_more(cache: ContextCache) -> dict[str, torch.Tensor]:
    key, value = (cache.saved_tensors()[name] for name in ("key", "value"))
    return {"key": key[:, :, :0], "value": value[:, :, :0]}


@of_kind("context")
@pytest.mark.parametrize("how", ["decode", "append"])
def test_a_masked_context_stays_masked(kind: Kind, how: str) -> None:
    mask = np.array([[True, False, True, True, False], [False] * 5])
    tokens = Tokens.draw(kind, dtype=torch.float64).masked(mask)
    cache, outputs = tokens.new_cache(), []
    if how == "append":
        tokens.append(cache, 0, 0, key_mask=torch.tensor(mask))
    else:
        outputs.append(tokens.decode(cache, 0, 2, key_mask=torch.tensor(mask)))
    outputs.append(tokens.decode(cache, cache.length, 12))
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float64)
    assert not torch.cat(outputs, dim=2)[1].any()


@of_kind("context")
def test_a_nan_in_a_context_reaches_its_own_sequence_alone(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    piece = tokens.piece(cache, 0, 6)
    piece["key"][1, :, 2] = torch.nan
    ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache)
    output = tokens.decode(cache, 6)
    assert output[1].isnan().all()
    assert_close(output[0], tokens.expected()[0, :, 6:], torch.float32)


def test_weights_are_those_over_the_context() -> None:
    tokens = Tokens.draw(Kind(spec("gqa", pattern=ph.SlidingWindow.symmetric(3)), ContextCache), dtype=torch.float64)
    cache = tokens.filled(6)
    output, weights = tokens.decode(cache, 6, return_weights=True)
    expected, expected_weights = tokens.inputs.oracle(return_weights=True)
    assert_close(output, expected[:, :, 6:], torch.float64)
    assert_close(weights, expected_weights[:, :, 6:], torch.float64, what="weights")


def test_a_layer_takes_its_context_once() -> None:
    layer = ph.Attention(ph.LayerSpec(attention=spec("gqa"), embed_dim=8, source="cross", context_dim=6))
    x, context = torch.randn(2, 6, 8), torch.randn(2, 5, 6)
    cache = layer.new_cache(2)
    with pytest.raises(ph.ShapeError, match="source='cross' needs context="):
        layer(x, cache=cache)
    pieces = [
        layer(x[:, :4], context=context, cache=cache),
        layer(x[:, 4:5], cache=cache),
        layer(x[:, 5:], cache=cache),
    ]
    assert_close(torch.cat(pieces, dim=1), layer(x, context=context), torch.float32)
    with pytest.raises(ph.ShapeError, match="has a context of 5 tokens already"):
        layer(x, context=context, cache=cache)


def test_cross_and_self_caches_are_not_interchangeable() -> None:
    whole = spec("gqa", pattern=ph.Causal())
    own, cross = (
        ph.Attention(ph.LayerSpec(attention=whole, embed_dim=8, source=source)) for source in ("self", "cross")
    )
    x = torch.randn(2, 3, 8)
    with pytest.raises(ph.PolyheadError, match="source"):
        own(x, cache=cross.new_cache(2))
    with pytest.raises(ph.PolyheadError, match="source"):
        cross(x, context=x, cache=own.new_cache(2))


def test_a_context_is_held_on_its_own_device() -> None:
    cache = new_cache(spec("gqa"), batch=1, source="cross", device="meta")
    cache.append(*(torch.empty(1, 2, 3, 8, device="meta") for _ in range(2)))
    assert {x.device.type for x in held(cache)} == {"meta"}
