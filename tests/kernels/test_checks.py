"""Bad input: each mistake in a call gets an error that says which argument, what came and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import polyhead as ph
from polyhead.kernels import checks
from tests.inputs import Inputs, spec

BATCH, Q_LEN, KV_LEN = 2, 4, 4
SPECS = {
    "gqa": spec("gqa"),
    "mla": spec("mla", position=ph.Rotary()),
    "differential": spec("gqa", weighting=ph.Differential(form="clipped")),
    "sink": spec("gqa", weighting=ph.Softmax(sink=True)),
}

Change = Callable[[dict[str, Any]], Any]


def arguments(name: str) -> dict[str, Any]:
    """Return the arguments of a call that is right, params among them."""
    inputs = Inputs.draw(SPECS[name], 0, batch=BATCH, q_len=Q_LEN, kv_len=KV_LEN)
    tensors: dict[str, Any] = inputs.tensors(torch.float32)
    given = {"query": tensors.pop("query"), "key": tensors.pop("key"), "value": tensors.pop("value", None)}
    return {**given, "spec": inputs.spec, "params": tensors}


def put(name: str, change: Callable[[Any], Any]) -> Change:
    """Return a mistake: one argument replaced by what a function makes of it."""

    def plant(right: dict[str, Any]) -> None:
        right[name] = change(right.get(name))

    return plant


def positions(*shape: int, dtype: torch.dtype = torch.int64) -> Callable[[Any], Tensor]:
    return lambda _: torch.zeros(shape, dtype=dtype)


def kept(*shape: int, dtype: torch.dtype = torch.bool) -> Callable[[Any], Tensor]:
    return lambda _: torch.ones(shape, dtype=dtype)


MISTAKES: list[tuple[str, Change, str]] = [
    # inputs: kind, rank, heads, width, dtype
    ("gqa", put("query", lambda _: None), "query is a NoneType; give a torch.Tensor"),
    ("gqa", put("value", lambda _: None), "value is a NoneType; give a torch.Tensor"),
    ("gqa", put("key", lambda x: x.numpy()), "key is a ndarray; give a torch.Tensor"),
    ("gqa", put("query", lambda x: x[0]), "query has shape [4, 4, 8]; give [batch, heads, len, width]"),
    ("gqa", put("key", lambda x: x[None]), "key has shape [1, 2, 2, 4, 8]; give [batch, heads, len, width]"),
    ("gqa", put("query", lambda x: x[:, :3]), "query has 3 heads of width 8; the spec needs 4 of width 8"),
    ("gqa", put("key", lambda x: x.repeat(1, 2, 1, 1)), "key has 4 heads of width 8; the spec needs 2 of width 8"),
    ("gqa", put("value", lambda x: x[..., :7]), "value has 2 heads of width 7; the spec needs 2 of width 8"),
    ("gqa", put("query", lambda x: x.mT), "query has 4 heads of width 4; the spec needs 4 of width 8"),
    ("gqa", put("query", lambda x: x.long()), "query has dtype torch.int64; give a floating dtype"),
    ("gqa", put("value", lambda x: x.cfloat()), "value has dtype torch.complex64; give a floating dtype"),
    ("differential", put("query", lambda x: x[:, :4]), "query has 4 heads of width 8; the spec needs 8 of width 8"),
    ("differential", put("key", lambda x: x[:, :2]), "key has 2 heads of width 8; the spec needs 4 of width 8"),
    ("differential", put("value", lambda x: x[..., :8]), "value has 2 heads of width 8; the spec needs 2 of width 16"),
    ("mla", put("value", lambda _: torch.zeros(2, 4, 4, 5)), "value must be None with Latent storage"),
    ("mla", put("key", lambda x: x[..., :6]), "key has 1 heads of width 6; the spec needs 1 of width 14"),
    # inputs beside one another
    ("gqa", put("key", lambda x: x.double()), "key is torch.float64 on cpu and query torch.float32 on cpu; make alike"),
    ("gqa", put("value", lambda x: x.half()), "value is torch.float16 on cpu and query torch.float32 on cpu"),
    ("gqa", put("key", lambda x: x.to("meta")), "key is torch.float32 on meta and query torch.float32 on cpu"),
    ("gqa", put("key", lambda x: x[:1]), "key has batch 1 and query 2; make them equal"),
    ("gqa", put("value", lambda x: x[:, :, :3]), "value has 3 tokens and key 4; make them equal"),
    # learned tensors
    ("gqa", put("params", lambda _: {"sinks": torch.zeros(4)}), "params has 'sinks', which this spec does not learn"),
    ("sink", put("params", lambda _: {}), "params lacks 'sinks' of shape [4], which this spec learns"),
    ("sink", put("params", lambda _: None), "params lacks 'sinks' of shape [4], which this spec learns"),
    ("sink", put("params", lambda _: {"sinks": [0.0] * 4}), "params['sinks'] is a list; give a torch.Tensor"),
    ("sink", put("params", lambda _: {"sinks": torch.zeros(3)}), "params['sinks'] has shape [3]; the spec needs [4]"),
    ("sink", put("params", lambda p: {"sinks": p["sinks"].to("meta")}), "params['sinks'] is on meta and query on cpu"),
    ("mla", put("params", lambda p: {"w_uk": p["w_uk"]}), "params lacks 'w_uv' of shape [4, 5, 6]"),
    # positions
    ("gqa", put("query_positions", positions(3)), "query_positions has shape [3]; give [4] or [2, 4]"),
    ("gqa", put("key_positions", positions(3, 4)), "key_positions has shape [3, 4]; give [4] or [2, 4]"),
    ("gqa", put("key_positions", positions(1, 2, 4)), "key_positions has shape [1, 2, 4]; give [4] or [2, 4]"),
    ("gqa", put("query_positions", positions(4, dtype=torch.float32)), "query_positions has dtype torch.float32; posi"),
    ("gqa", put("key_positions", positions(4, dtype=torch.bool)), "key_positions has dtype torch.bool; positions are"),
    # masks
    ("gqa", put("key_mask", kept(2, 3)), "key_mask has shape [2, 3]; give [2, 4]"),
    ("gqa", put("key_mask", kept(4)), "key_mask has shape [4]; give [2, 4]"),
    (
        "gqa",
        put("key_mask", kept(2, 4, dtype=torch.int64)),
        "key_mask has dtype torch.int64; give booleans, True where",
    ),
    # segments
    ("gqa", put("segments", positions(2, 3)), "segments are torch.int64 [2, 3]; give whole numbers [2, 4]"),
    ("gqa", put("segments", positions(4)), "segments are torch.int64 [4]; give whole numbers [2, 4]"),
    ("gqa", put("segments", positions(2, 4, dtype=torch.float32)), "segments are torch.float32 [2, 4]; give whole"),
    # dropout
    ("gqa", put("dropout_p", lambda _: -0.1), "dropout_p=-0.1 is not a probability below 1; give 0 ≤ dropout_p < 1"),
    ("gqa", put("dropout_p", lambda _: 1.0), "dropout_p=1.0 is not a probability below 1"),
    ("gqa", put("dropout_p", lambda _: float("nan")), "dropout_p=nan is not a probability below 1"),
]


@pytest.mark.parametrize(("name", "plant", "message"), MISTAKES, ids=[message for *_, message in MISTAKES])
def test_a_mistake_is_named(name: str, plant: Change, message: str) -> None:
    wrong = arguments(name)
    plant(wrong)
    with pytest.raises(ph.ShapeError, match=re.escape(message)):
        ph.attend(**wrong)


@pytest.mark.parametrize("name", SPECS)
def test_without_a_mistake_the_call_runs(name: str) -> None:
    assert ph.attend(**arguments(name)).shape == (BATCH, 4, Q_LEN, SPECS[name].v_head_dim)


def test_segments_need_as_many_queries_as_keys() -> None:
    right = arguments("gqa")
    right["query"] = right["query"][:, :, :2]
    with pytest.raises(ph.ShapeError, match="segments need as many queries as keys, got 2 and 4"):
        ph.attend(**right, segments=torch.zeros(2, 4, dtype=torch.int64))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8, torch.int64])
def test_whole_numbers_of_any_dtype_are_positions_and_segments(dtype: torch.dtype) -> None:
    right = arguments("gqa")
    places = torch.tensor([3, 1, 0, 2], dtype=dtype)
    expected = ph.attend(**right, key_positions=places.long(), segments=places.long().expand(2, 4))
    assert torch.equal(ph.attend(**right, key_positions=places, segments=places.expand(2, 4)), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_learned_tensors_may_have_another_floating_dtype(dtype: torch.dtype) -> None:
    right = arguments("sink")
    rounded = {"sinks": right["params"]["sinks"].to(dtype)}
    expected = ph.attend(**{**right, "params": {"sinks": rounded["sinks"].float()}})
    assert torch.equal(ph.attend(**{**right, "params": rounded}), expected)


# --- what a cache and a layer ask besides


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3], "lengths=[3] is not one number for each of 2 sequences"),
        ([1, 2, 3], "lengths=[1, 2, 3] is not one number for each of 2 sequences"),
        (torch.tensor(3), "lengths=3 is not one number for each of 2 sequences"),
        (torch.tensor([[1, 2]]), "lengths=[[1, 2]] is not one number for each of 2 sequences"),
        ([1, 5], "lengths=[1, 5]: 5 is not a whole number from 0 to 4, the tokens given"),
        ([-1, 0], "lengths=[-1, 0]: -1 is not a whole number from 0 to 4, the tokens given"),
        ([1, 2.0], "lengths=[1, 2.0]: 2.0 is not a whole number from 0 to 4, the tokens given"),
        ([True, 2], "lengths=[True, 2]: True is not a whole number from 0 to 4, the tokens given"),
        (torch.tensor([1.0, 2.0]), "lengths=[1.0, 2.0]: 1.0 is not a whole number"),
    ],
    ids=repr,
)
def test_lengths_are_one_whole_number_for_each_sequence(lengths: Any, message: str) -> None:
    with pytest.raises(ph.ShapeError, match=re.escape(message)):
        checks.check_lengths(lengths, BATCH, Q_LEN)


@pytest.mark.parametrize("lengths", [[0, 4], (0, 4), torch.tensor([0, 4]), np.array([0, 4])], ids=repr)
def test_lengths_may_come_as_any_kind_of_list(lengths: Any) -> None:
    assert checks.check_lengths(lengths, BATCH, Q_LEN) == (0, 4)
    assert checks.real_tokens(torch.zeros(BATCH, Q_LEN, 3), lengths).tolist() == [[False] * 4, [True] * 4]


def test_lengths_without_a_cache_are_refused() -> None:
    with pytest.raises(ph.ShapeError, match="lengths say which tokens a cache keeps, and there is none; without one,"):
        ph.attend(**arguments("gqa"), lengths=[1, 2])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0]], "x is a list; give a torch.Tensor"),
        (torch.zeros(2, 8), "x has shape [2, 8]; give [batch, tokens, 8]"),
        (torch.zeros(2, 4, 7), "x has shape [2, 4, 7]; give [batch, tokens, 8]"),
        (torch.zeros(2, 4, 1, 8), "x has shape [2, 4, 1, 8]; give [batch, tokens, 8]"),
    ],
    ids=["no tensor", "no batch", "width", "heads"],
)
def test_what_a_layer_is_given_must_be_tokens_of_its_width(x: Any, message: str) -> None:
    weight = torch.zeros(8, 8)
    checks.check_tokens("x", torch.zeros(2, 4, 8), 8, weight)
    with pytest.raises(ph.ShapeError, match=re.escape(message)):
        checks.check_tokens("x", x, 8, weight)


def test_autocast_makes_its_own_dtype_of_all_but_float64() -> None:
    dtypes = (torch.float64, torch.float32, torch.float16)
    assert [checks.autocast_dtype("cpu", dtype) for dtype in dtypes] == list(dtypes)
    assert checks.autocast_dtype("meta", torch.float32) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [checks.autocast_dtype("cpu", dtype) for dtype in dtypes]
    assert inside == [torch.float64, torch.bfloat16, torch.bfloat16]
