"""Tensors that go into a cache and come out of it: dtypes, layouts, whose memory it is, and no gradient ever."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch

import polyhead as ph
from polyhead.cache import StateCache
from tests.cache.helpers import Kind, Tokens, assert_same_content, by_class, by_kind, content, held, of_kind
from tests.tolerances import assert_close

# --- dtypes


@by_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_decodes_as_near_as_one_pass(kind: Kind, dtype: torch.dtype) -> None:
    tokens = Tokens.draw(kind, dtype=dtype)
    cache = tokens.new_cache()
    outputs = [tokens.decode(cache, 0, 5), *(tokens.decode(cache, n, n + 1) for n in range(5, 12))]
    assert all(output.dtype == dtype for output in outputs)
    decoded = torch.cat(outputs, dim=2)
    assert_close(decoded, tokens.expected(), dtype)
    given = {name: torch.tensor(array) for name, array in tokens.inputs.given.items()}
    whole = ph.attend(**tokens.piece(tokens.new_cache(), 0), spec=kind.spec, params=tokens.params(), **given)
    assert_close(decoded, whole, dtype)


@by_kind
def test_half_precision_takes_half_the_bytes_but_for_sums(kind: Kind) -> None:
    single, half, double = (
        Tokens.draw(kind, dtype=dtype).filled(9) for dtype in (torch.float32, torch.bfloat16, torch.float64)
    )
    assert double.used_bytes == 2 * single.used_bytes
    assert double.allocated_bytes == 2 * single.allocated_bytes
    share = 1 if kind.kept is StateCache else 2
    assert (single.used_bytes, single.allocated_bytes) == (share * half.used_bytes, share * half.allocated_bytes)
    kept = {x.dtype for x in held(half)}
    assert kept == {torch.float32 if kind.kept is StateCache else torch.bfloat16}


@by_kind
def test_under_autocast_inputs_come_in_its_dtype(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache, by_hand = tokens.new_cache(dtype=torch.bfloat16), tokens.new_cache(dtype=torch.bfloat16)
    halved = Tokens(kind, tokens.inputs, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [tokens.decode(cache, 0, 5), tokens.decode(cache, 5)]
    expected = [halved.decode(by_hand, 0, 5), halved.decode(by_hand, 5)]
    assert outputs[0].dtype == torch.bfloat16
    assert_close(torch.cat(outputs, dim=2), torch.cat(expected, dim=2), torch.bfloat16)
    assert_same_content(content(cache), content(by_hand))


@of_kind("growing", "rolling", "state")
def test_under_autocast_appending_keeps_what_attending_keeps(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    attended, appended = tokens.new_cache(dtype=torch.bfloat16), tokens.new_cache(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens.decode(attended, 0, 8)
        tokens.append(appended, 0, 8)
    assert_same_content(content(appended), content(attended))


@by_kind
def test_a_layers_cache_has_the_dtype_of_autocast(kind: Kind) -> None:
    layer = ph.Attention(ph.LayerSpec(attention=kind.spec, embed_dim=16, source=kind.source))
    assert layer.new_cache(2).dtype == torch.float32
    x = torch.randn(2, 6, 16)
    context = {"context": torch.randn(2, 4, 16)} if kind.source == "cross" else {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = layer.new_cache(2)
        assert cache.dtype == torch.bfloat16
        decoded = torch.cat([layer(x[:, :5], cache=cache, **context), layer(x[:, 5:], cache=cache)], dim=1)
        assert_close(decoded, layer(x, **context), torch.bfloat16)


# --- layouts


@by_kind
def test_inputs_need_not_be_contiguous(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    outputs = []
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        piece = {n: x if x is None else strewn(x) for n, x in tokens.piece(cache, start, stop).items()}
        outputs.append(ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache))
    assert_close(torch.cat(outputs, dim=2), tokens.expected(), torch.float32)


def strewn(x: torch.Tensor) -> torch.Tensor:
    """Return the same numbers, every second of a longer tensor, its axes in another order."""
    long = torch.full((*x.shape[:1], 2 * x.shape[3], x.shape[1], x.shape[2]), torch.nan)
    view = long[:, ::2].permute(0, 2, 3, 1)
    view.copy_(x)
    assert not view.is_contiguous() or not view.numel()
    return view


@by_kind
def test_what_was_given_may_be_written_over_afterwards(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    piece = tokens.piece(cache, 0, 5)
    ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache)
    for x in piece.values():
        if x is not None:
            x.fill_(torch.nan)
    assert_close(tokens.decode(cache, 5), tokens.expected()[:, :, 5:], torch.float32)


@by_kind
def test_what_was_given_is_not_written_to(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    piece = tokens.piece(cache, 0, 5)
    copies = {n: x if x is None else x.clone() for n, x in piece.items()}
    ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache)
    cache.reorder([1, 0])
    cache.reset()
    assert all(x is None or torch.equal(x, copies[n]) for n, x in piece.items())


@by_kind
def test_what_comes_out_is_not_changed_by_what_comes_next(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    first = tokens.decode(cache, 0, 5)
    copy = first.clone()
    tokens.decode(cache, 5)
    cache.reset()
    assert torch.equal(first, copy)


# --- gradients


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}
PAIRS = list(itertools.permutations(MODES, 2))
by_mode_pair = pytest.mark.parametrize(("first", "then"), PAIRS, ids=["-then-".join(pair) for pair in PAIRS])


@by_kind
@by_mode_pair
def test_a_cache_made_in_one_mode_goes_on_in_another(kind: Kind, first: str, then: str) -> None:
    tokens = Tokens.draw(kind)
    with MODES[first]():
        cache = tokens.filled(7)
        twin = cache.clone()
    with MODES[then]():
        outputs = [tokens.decode(cache, 7, 8), tokens.decode(twin, 7, 8)]
        cache.reorder([1, 0])
        cache.reorder([1, 0])
        outputs.append(tokens.decode(cache, 8, 11))
        twin = cache.clone()
    with MODES[first]():
        outputs.append(tokens.decode(cache, 11))
        outputs.append(tokens.decode(twin, 11))
    expected = tokens.expected()
    for output, places in zip(outputs, [[7], [7], [8, 9, 10], [11], [11]], strict=True):
        assert_close(output, expected[:, :, places], torch.float32)


@by_kind
@by_mode_pair
def test_a_cache_made_in_one_mode_is_changed_in_another(kind: Kind, first: str, then: str) -> None:
    tokens = Tokens.draw(kind)
    with MODES[first]():
        cache = tokens.filled(7)
    with MODES[then]():
        cache.reorder([0, 1, 0])
        cache.reorder([2, 1])
        cache.crop([7, 0])
        cache.crop([0, 0])
        cache.reset()
        cache.append(**{n: x for n, x in tokens.piece(cache, 0, 3).items() if n != "query"}, params=tokens.params())
    with MODES[first]():
        cache.reset()
        assert_close(tokens.decode(cache, 0), tokens.expected(), torch.float32)


@by_kind
def test_room_that_was_reserved_in_inference_mode_can_be_written_to_outside(kind: Kind) -> None:
    tokens = Tokens.draw(kind, 80)
    for longest in (None, 80):
        with torch.inference_mode():
            cache = tokens.new_cache(max_seq_len=longest)
            tokens.decode(
                cache, 0, 60, key_mask=None if kind.source == "cross" else torch.ones(2, 60, dtype=torch.bool)
            )
        assert_close(tokens.decode(cache, 60), tokens.expected()[:, :, 60:], torch.float32)  # past the first 64 slots


@by_kind
def test_nothing_of_a_cache_ever_requires_a_gradient(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    for start in (0, 6):
        piece = {n: x if x is None else x.requires_grad_() for n, x in tokens.piece(cache, start, start + 6).items()}
        params = {name: x.requires_grad_() for name, x in tokens.params().items()}
        output = ph.attend(**piece, spec=kind.spec, params=params, cache=cache)
        assert not output.requires_grad
        assert not any(x.requires_grad for x in held(cache))


@of_kind("growing", "state", "context")
def test_a_layer_that_decodes_records_nothing(kind: Kind) -> None:
    layer = ph.Attention(ph.LayerSpec(attention=kind.spec, embed_dim=16, source=kind.source))
    assert all(parameter.requires_grad for parameter in layer.parameters())
    cache = layer.new_cache(2)
    context = {"context": torch.randn(2, 4, 16)} if kind.source == "cross" else {}
    for given in (context, {}):
        assert not layer(torch.randn(2, 3, 16), cache=cache, **given).requires_grad


@by_class
def test_a_cache_keeps_no_graph_alive(kind: Kind) -> None:
    layer = ph.Attention(ph.LayerSpec(attention=kind.spec, embed_dim=16, source=kind.source))
    cache = layer.new_cache(2)
    given = {"x": torch.randn(2, 3, 16)}
    if kind.source == "cross":
        given["context"] = torch.randn(2, 4, 16)
    seen = [weakref.ref(x) for x in given.values()]  # a projection's graph keeps its input
    layer(**given, cache=cache)
    given.clear()
    gc.collect()
    assert [ref() for ref in seen] == [None] * len(seen)
    assert cache.length == 3
