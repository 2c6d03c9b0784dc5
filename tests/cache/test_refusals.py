"""What a cache does not take, and that it is as it was afterwards."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from tests.cache.helpers import (
    KINDS,
    Kind,
    Tokens,
    assert_same_content,
    by_class,
    by_kind,
    content,
    left_as_it_was,
    of_kind,
)
from tests.tolerances import assert_close

# --- what is given


Given = dict[str, Any]
Fault = Callable[[Given, Kind], Given]


def every(change: Callable[[torch.Tensor], Any]) -> Fault:
    return lambda given, kind: {
        n: change(x) if n in ("query", "key", "value") and x is not None else x for n, x in given.items()
    }


def one(name: str, change: Callable[[torch.Tensor], Any]) -> Fault:
    return lambda given, kind: {**given, name: change(given[name])}


def more(**options: Any) -> Fault:
    return lambda given, kind: {**given, **options}


def another_spec(given: Given, kind: Kind) -> Given:
    position = ph.Rotary(theta=77.0) if kind.spec.position == ph.NoPosition() else ph.NoPosition()
    return {**given, "spec": dataclasses.replace(kind.spec, position=position)}


def another_kernel(given: Given, kind: Kind) -> Given:
    return {**given, "kernel": "dense" if isinstance(kind.spec.weighting, ph.Linear) else "linear"}


def mask(*shape: int, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


SHAPES: dict[str, tuple[Fault, str]] = {
    "batch": (every(lambda x: x[:1]), r"(query|key) has batch 1 and the cache 2; make a cache for it"),
    "batch of the key": (one("key", lambda x: x[:1]), "key has batch 1 and query 2"),
    "dtype": (every(torch.Tensor.double), r"(query|key) is torch\.float64 on cpu and the cache torch\.float32"),
    "half": (every(torch.Tensor.bfloat16), r"(query|key) is torch\.bfloat16 on cpu and the cache torch\.float32"),
    "dtype of the key": (one("key", torch.Tensor.double), r"key is torch\.float64 on cpu and query torch\.float32"),
    "whole numbers": (every(torch.Tensor.int), r"(query|key) has dtype torch\.int32; give a floating dtype"),
    "device of the key": (one("key", lambda x: x.to("meta")), r"key is .* on meta and query .* on cpu"),
    "heads": (one("query", lambda x: x[:, :1]), "query has 1 heads of width [0-9]+; the spec needs 4 of"),
    "heads of the key": (one("key", lambda x: x.repeat(1, 3, 1, 1)), "key has [36] heads of width [0-9]+; the spec"),
    "width": (one("query", lambda x: x[..., :1]), "query has 4 heads of width 1; the spec needs 4 of"),
    "width of the key": (one("key", lambda x: x[..., :1]), "key has [12] heads of width 1; the spec needs"),
    "three axes": (one("query", lambda x: x[0]), r"query has shape .*; give \[batch, heads, len, width\]"),
    "an array": (one("query", lambda x: x.numpy()), "query is a ndarray; give a torch.Tensor"),
    "no key": (more(key=None), "key is a NoneType; give a torch.Tensor"),
    "mask shape": (more(key_mask=mask(2, 9)), r"key_mask has shape \[2, 9\]; give \[2, [30]\]"),
    "mask dtype": (more(key_mask=mask(2, 3, dtype=torch.float32)), r"key_mask has dtype torch\.float32; give booleans"),
    "one length": (more(lengths=[3]), "is not one number for each of 2 sequences"),
    "three lengths": (more(lengths=[3, 3, 3]), "is not one number for each of 2 sequences"),
    "lengths in two axes": (more(lengths=torch.tensor([[1], [2]])), "is not a whole number from 0 to 3"),
    "no list of lengths": (more(lengths=torch.tensor(3)), "is not one number for each of 2 sequences"),
    "a number of lengths": (more(lengths=3), "lengths=3 is not one number for each of 2 sequences"),
    "a negative length": (more(lengths=[-1, 3]), "-1 is not a whole number from 0 to 3"),
    "a length past the tokens": (more(lengths=[3, 4]), "4 is not a whole number from 0 to 3, the tokens given"),
    "a length with a fraction": (more(lengths=[1.5, 3]), "1.5 is not a whole number"),
    "lengths in floats": (more(lengths=torch.tensor([1.0, 2.0])), "1.0 is not a whole number"),
    "dropout": (more(dropout_p=1.5), "dropout_p=1.5 is not a probability below 1"),
    "a parameter too many": (more(params={"sinks": torch.zeros(4)}), "params has 'sinks', which this spec does not"),
}

OTHERS: dict[str, tuple[Fault, type[Exception], str]] = {
    "query positions": (
        more(query_positions=torch.arange(3)),
        ph.UnsupportedError,
        "positions are given, and a cache counts on from its last token; leave them out",
    ),
    "key positions": (
        lambda given, kind: {**given, "key_positions": torch.arange(given["key"].shape[2])},
        ph.UnsupportedError,
        "positions are given, and a cache counts on",
    ),
    "another spec": (
        another_spec,
        ph.SpecError,
        "the cache was made for AttentionSpec.* and this call is for Attention",
    ),
    "no such kernel": (more(kernel="fast"), ph.UnknownNameError, "no kernel is called 'fast'"),
    "another kernel": (another_kernel, ph.UnsupportedError, "kernel='(linear|dense)' does not run this"),
}

FAULTS = {**{name: (fault, ph.ShapeError, match) for name, (fault, match) in SHAPES.items()}, **OTHERS}
by_fault = pytest.mark.parametrize(
    ("fault", "error", "match"), FAULTS.values(), ids=[name.replace(" ", "-") for name in FAULTS]
)


@by_class
@by_fault
def test_a_refused_call_changes_nothing(kind: Kind, fault: Fault, error: type[Exception], match: str) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    given = {**tokens.piece(cache, 6, 9), "spec": kind.spec, "params": tokens.params(), "cache": cache}
    with left_as_it_was(cache, tokens, 6), pytest.raises(error, match=match):
        ph.attend(**fault(given, kind))


@by_kind
def test_tensors_on_another_device_are_refused(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    piece, params = (
        {name: None if x is None else x.to("meta") for name, x in tensors.items()}
        for tensors in (tokens.piece(cache, 6, 9), tokens.params())
    )
    with left_as_it_was(cache, tokens, 6):
        message = r"is torch\.float32 on meta and the cache torch\.float32 on cpu; make them alike, with new_cache"
        with pytest.raises(ph.ShapeError, match=message):
            ph.attend(**piece, spec=kind.spec, params=params, cache=cache)
        with pytest.raises(ph.ShapeError, match=message):
            cache.append(piece["key"], piece["value"], params=params)


@of_kind("growing", "rolling", "state")
def test_with_a_cache_there_is_a_key_for_each_query(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    piece = tokens.piece(cache, 6, 9)
    piece["query"] = piece["query"][:, :, :2]
    with (
        left_as_it_was(cache, tokens, 6),
        pytest.raises(ph.ShapeError, match="query has 2 tokens and key 3; with a cache"),
    ):
        ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache)


@of_kind("growing", "rolling", "state")
def test_packed_sequences_do_not_go_into_a_cache(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    segments = torch.zeros(2, 3, dtype=torch.int64)
    with left_as_it_was(cache, tokens, 6), pytest.raises(ph.UnsupportedError, match="segments are given, and a cache"):
        tokens.decode(cache, 6, 9, segments=segments)


@of_kind("growing latent", "rolling latent", "state latent", "context latent")
@pytest.mark.parametrize("name", ["w_uk", "w_uv"])
def test_a_learned_tensor_that_is_missing_or_wrong_changes_nothing(kind: Kind, name: str) -> None:
    tokens = Tokens.draw(kind)
    cache, params = tokens.filled(6), tokens.params()
    given = {**tokens.piece(cache, 6, 9), "spec": kind.spec, "cache": cache}
    with left_as_it_was(cache, tokens, 6):
        with pytest.raises(ph.ShapeError, match=f"params lacks '{name}' of shape"):
            ph.attend(**given, params={n: x for n, x in params.items() if n != name})
        with pytest.raises(ph.ShapeError, match=f"'{name}'. has shape .*; the spec needs"):
            ph.attend(**given, params={**params, name: params[name][..., :1]})


def test_lengths_without_a_cache_are_refused() -> None:
    tokens = Tokens.draw(KINDS["growing"])
    with pytest.raises(ph.ShapeError, match=r"lengths say which tokens a cache keeps, and there is none; .* key_mask"):
        ph.attend(**tokens.piece(tokens.new_cache(), 0), spec=tokens.kind.spec, lengths=[3, 4])


@of_kind("state")
def test_weights_cannot_be_dropped_from_sums(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    match = "dropout is in the plain kernel alone: sums over keys have no weights to drop"
    with left_as_it_was(cache, tokens, 6), pytest.raises(ph.UnsupportedError, match=match):
        tokens.decode(cache, 6, 9, dropout_p=0.1)
    layer = ph.Attention(kind.spec, embed_dim=8, dropout_p=0.1).train()
    cache, x = layer.new_cache(2), torch.randn(2, 3, 8)
    before = content(cache)
    with pytest.raises(ph.UnsupportedError, match=match):
        layer(x, cache=cache)
    assert_same_content(content(cache), before)
    assert_close(layer.eval()(x, cache=cache), layer(x), torch.float32)


# --- append


APPENDED: dict[str, tuple[Fault, str]] = {
    "batch": (every(lambda x: x[:1]), r"has batch 1 and the cache 2; make a cache for it"),
    "dtype": (every(torch.Tensor.double), r"is torch\.float64 on cpu and the cache torch\.float32"),
    "whole numbers": (every(torch.Tensor.int), r"has dtype torch\.int32; give a floating dtype"),
    "heads": (one("key", lambda x: x.repeat(1, 3, 1, 1)), "key has [36] heads of width [0-9]+; the spec"),
    "width": (one("key", lambda x: x[..., :1]), "key has [12] heads of width 1; the spec needs"),
    "one axis": (one("key", torch.Tensor.flatten), r"key has shape \[[0-9]+\]; give \[batch, heads, len, width\]"),
    "three axes": (one("key", lambda x: x[0]), r"key has shape .*; give \[batch, heads, len, width\]"),
    "an array": (one("key", lambda x: x.numpy()), "key is a ndarray; give a torch.Tensor"),
    "no key": (more(key=None), "key is a NoneType; give a torch.Tensor"),
    "mask shape": (more(key_mask=mask(2, 9)), r"key_mask has shape \[2, 9\]; give \[2, [30]\]"),
    "mask dtype": (more(key_mask=mask(2, 3, dtype=torch.int64)), r"key_mask has dtype torch\.int64; give booleans"),
    "one length": (more(lengths=[3]), "is not one number for each of 2 sequences"),
    "a negative length": (more(lengths=[-1, 0]), "-1 is not a whole number from 0 to"),
    "a length past the tokens": (more(lengths=[0, 4]), "4 is not a whole number from 0 to [30], the tokens given"),
    "a parameter too many": (more(params={"sinks": torch.zeros(4)}), "params has 'sinks', which this spec does not"),
}


@by_class
@pytest.mark.parametrize(("fault", "match"), APPENDED.values(), ids=[name.replace(" ", "-") for name in APPENDED])
def test_a_refused_append_changes_nothing(kind: Kind, fault: Fault, match: str) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    given = {**tokens.piece(cache, 6, 9), "params": tokens.params()}
    del given["query"]
    with left_as_it_was(cache, tokens, 6), pytest.raises(ph.ShapeError, match=match):
        cache.append(**fault(given, kind))


@pytest.mark.parametrize(
    ("fault", "match"),
    [
        (every(torch.Tensor.double), r"^key is torch\.float64"),
        (every(lambda x: x[:1]), "^key has batch 1"),
        (every(torch.Tensor.int), r"^key has dtype torch\.int32"),
    ],
    ids=["dtype", "batch", "whole-numbers"],
)
def test_an_append_names_what_was_given_to_it(fault: Fault, match: str) -> None:
    tokens = Tokens.draw(KINDS["growing"])
    cache = tokens.new_cache()
    given = tokens.piece(cache, 0, 3)
    del given["query"]
    with pytest.raises(ph.ShapeError, match=match):
        cache.append(**fault(given, tokens.kind))


# --- max_seq_len


@of_kind("growing", "state", "context")
@pytest.mark.parametrize("lengths", [None, [1, 3]])
def test_passing_max_seq_len_names_both_numbers(kind: Kind, lengths: list[int] | None) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6, max_seq_len=8)
    before = content(cache)
    match = "3 tokens more would make a sequence of 9, past max_seq_len=8; make a longer cache, or crop or reset"
    with pytest.raises(ph.ShapeError, match=match):
        tokens.decode(cache, 6, 9, lengths=lengths)
    if kind.source == "self":  # what is appended to a context is no query
        with pytest.raises(ph.ShapeError, match=match):
            tokens.append(cache, 6, 9, lengths=lengths)
    assert_same_content(content(cache), before)
    assert_close(tokens.decode(cache, 6, 8), tokens.expected()[:, :, 6:8], torch.float32)


@of_kind("growing", "state", "context")
def test_a_longest_sequence_that_is_full_may_wait_for_the_others(kind: Kind) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache(max_seq_len=6)
    tokens.decode(cache, 0, 6, lengths=[6, 2])
    piece = tokens.ragged(cache, [6, 2], [0, 3])
    output = ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=cache, lengths=[0, 3])
    assert cache.lengths == (6, 5)
    assert_close(output[1], tokens.expected()[1, :, 2:5], torch.float32)


# --- crop and reorder


@by_class
@pytest.mark.parametrize("length", [7, -1, [0, 7], [-1, 0], np.array([7, 7]), torch.tensor([-1, -1])], ids=repr)
def test_a_crop_to_more_than_there_is_changes_nothing(kind: Kind, length: Any) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    match = r"crop cannot leave (7|-1) tokens of sequence [01], which has 6; give 0 to 6"
    with left_as_it_was(cache, tokens, 6), pytest.raises(ph.ShapeError, match=match):
        cache.crop(length)


@by_class
@pytest.mark.parametrize("length", [[6], [6, 6, 6], []], ids=repr)
def test_a_crop_has_a_length_for_each_sequence(kind: Kind, length: Any) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    match = f"crop got {len(length)} lengths for 2 sequences; give one number, or one each"
    with left_as_it_was(cache, tokens, 6), pytest.raises(ph.ShapeError, match=match):
        cache.crop(length)


NO_NUMBERS = [2.0, [1.0, 0.0], "10", None, torch.tensor([1.0, 0.0]), np.array([1.0, 0.0]), torch.tensor([[1, 0]])]
NO_NUMBERS_IDS = ["float", "floats", "text", "none", "float-tensor", "float-array", "two-axes"]


@by_class
@pytest.mark.parametrize("given", NO_NUMBERS, ids=NO_NUMBERS_IDS)
def test_what_is_no_whole_number_is_neither_a_length_nor_a_sequence(kind: Kind, given: Any) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    with left_as_it_was(cache, tokens, 6):
        for name, change in (("length", cache.crop), ("rows", cache.reorder)):
            match = f"^{name}={re.escape(repr(given))} is not made of whole numbers; give some"
            with pytest.raises(ph.ShapeError, match=match):
                change(given)


@by_class
@pytest.mark.parametrize(("rows", "bad"), [([0, 2], 2), ([-1], -1), (torch.tensor([1, 5]), 5), (np.array([-2]), -2)])
def test_a_row_that_is_no_sequence_changes_nothing(kind: Kind, rows: Any, bad: int) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(6)
    match = f"reorder got sequence {bad} of 2; give numbers from 0 to 1"
    with left_as_it_was(cache, tokens, 6), pytest.raises(ph.ShapeError, match=match):
        cache.reorder(rows)
