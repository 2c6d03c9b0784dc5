"""A few queries against stored keys, in PyTorch and compiled: the oracle's output, around every boundary inside."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import compiled, decode, decode_numba, decoding, flash, select
from polyhead.kernels.common import Case
from tests.inputs import Inputs
from tests.kernels.watch import NothingNewAsLargeAs
from tests.tolerances import assert_close
from tests.walk import walk

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")
WAYS = ["decode", pytest.param("numba", marks=needs_numba)]
BOTH = pytest.mark.parametrize("kernel", WAYS)

WINDOW = ph.SlidingWindow.causal(40)
T5 = ph.RelativeBias.t5(num_buckets=8, max_distance=30)
SPECS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal, RoPE": {"pattern": ph.Causal(), "position": ph.Rotary()},
    "one key head": {"pattern": ph.Causal(), "kv_heads": 1},
    "as many key heads": {"pattern": ph.Causal(), "kv_heads": 6},
    "values wider": {"pattern": ph.Causal(), "v_width": 24},
    "window": {"pattern": WINDOW},
    "two-sided window": {"pattern": ph.SlidingWindow.symmetric(10)},
    "first tokens kept": {"pattern": ph.Causal() & (WINDOW | ph.Global(first=3))},
    "chunks": {"pattern": ph.Chunked(size=32) & ph.Causal()},
    "BigBird": {"pattern": ph.BigBird(block=16) & ph.Causal()},
    "ALiBi": {"pattern": ph.Causal(), "position": ph.Alibi()},
    "ALiBi, two-sided": {"position": ph.Alibi()},
    "T5": {"pattern": ph.Causal(), "position": T5},
    "clipped table in a window, sinks": {
        "pattern": WINDOW,
        "position": ph.RelativeBias.clipped(max_distance=12),
        "weighting": ph.Softmax(sink=True),
    },
    "softcap, ALiBi, sinks": {
        "pattern": ph.Causal(),
        "position": ph.Alibi(),
        "weighting": ph.Softmax(softcap=3.0, sink=True),
    },
    "scale": {"weighting": ph.Softmax(scale=1.5)},
    "paper": {"pattern": ph.Causal(), "weighting": ph.Differential()},
    "DiffLlama": {"pattern": ph.Causal(), "weighting": ph.Differential(form="diffllama"), "position": ph.Rotary()},
}
TORCH_ALONE = {
    "Shaw": {"pattern": ph.Causal(), "position": ph.RelativeBias.shaw(max_distance=9)},
    "clipped difference": {"pattern": ph.Causal(), "weighting": ph.Differential(form="clipped")},
}
BY_WAY = [pytest.param(way, name, marks=needs_numba) for way in ("numba",) for name in SPECS]
BY_WAY += [pytest.param("decode", name) for name in (*SPECS, *TORCH_ALONE)]


def spec(name: str) -> ph.AttentionSpec:
    choices = dict({**SPECS, **TORCH_ALONE}[name])
    heads = choices.pop("kv_heads", 2)
    storage = ph.Grouped(num_heads=6, num_kv_heads=heads, head_dim=8, v_head_dim=choices.pop("v_width", None))
    return ph.AttentionSpec(storage=storage, **choices)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let units, pieces and threads be many at lengths of a few hundred keys."""
    monkeypatch.setattr(decode_numba, "UNIT_KEYS", 128)
    monkeypatch.setattr(decode_numba, "BYTES_A_THREAD", 2**10)
    monkeypatch.setattr(decoding, "WIDENED_ELEMENTS", 2**10)
    monkeypatch.setattr(decoding, "FEWEST_KEYS", 0)
    monkeypatch.setattr(decode, "STRETCH", 32)
    monkeypatch.setattr(decode, "FEWEST_ROWS", 9)  # those of a group of three heads and three queries


def attend(inputs: Inputs, kernel: str, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = inputs.attend(dtype, kernel=kernel, **options)
    return output


def check(inputs: Inputs, kernel: str, dtype: torch.dtype = torch.float32) -> None:
    inputs = inputs.rounded(dtype)
    assert_close(attend(inputs, kernel, dtype), inputs.oracle(), dtype)


@pytest.mark.parametrize("q_len", [1, 3])
@pytest.mark.parametrize(("kernel", "name"), BY_WAY)
def test_every_mechanism_it_takes(kernel: str, name: str, q_len: int) -> None:
    check(Inputs.draw(spec(name), 0, q_len=q_len, kv_len=301), kernel)


@walk(
    "name, q_len, kv_len",
    ["causal, RoPE", "window", "DiffLlama"],
    [1, 2, 16],
    [1, 2, 63, 64, 65, 127, 128, 129, 192, 256, 257],
)
@BOTH
def test_lengths_around_every_boundary(kernel: str, name: str, q_len: int, kv_len: int) -> None:
    check(Inputs.draw(spec(name), 1, q_len=q_len, kv_len=kv_len), kernel)


@pytest.mark.parametrize(
    ("name", "q_len", "kv_len", "expected"),
    [
        ("causal, RoPE", 3, 301, True),
        ("one key head", 2, 301, True),
        ("window", 3, 301, False),  # of 42 keys too many are not seen by all
        ("causal, RoPE", 2, 301, False),
        ("causal, RoPE", 3, 60, False),
        *((name, 3, 301, False) for name in ("ALiBi", "T5", "paper", "values wider", "softcap, ALiBi, sinks")),
    ],
)
def test_many_rows_go_by_stretches_of_keys(
    monkeypatch: pytest.MonkeyPatch, name: str, q_len: int, kv_len: int, expected: bool
) -> None:
    calls = []
    stretched = flash.in_stretches
    monkeypatch.setattr(flash, "in_stretches", lambda *given: calls.append(1) or stretched(*given))
    inputs = Inputs.draw(spec(name), 5, q_len=q_len, kv_len=kv_len)
    found = attend(inputs, "decode")
    assert bool(calls) is expected
    monkeypatch.setattr(decode, "FEWEST_ROWS", 10**9)
    assert_close(found, attend(inputs, "decode"), torch.float32)


@pytest.mark.parametrize("name", ["causal, RoPE", "values wider", "T5", "paper", "first tokens kept"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@BOTH
def test_every_dtype(kernel: str, dtype: torch.dtype, name: str) -> None:
    inputs = Inputs.draw(spec(name), 2, q_len=2, kv_len=201)
    if kernel == "numba" and dtype != torch.bfloat16:
        with pytest.raises(ph.UnsupportedError, match="the loops are for float32 and bfloat16"):
            attend(inputs, kernel, dtype)
        return
    check(inputs, kernel, dtype)


@pytest.mark.parametrize("name", ["full", "causal, RoPE", "window", "ALiBi", "paper", "softcap, ALiBi, sinks"])
@BOTH
def test_masked_keys_and_given_positions(kernel: str, name: str) -> None:
    rng = np.random.default_rng(3)
    inputs = Inputs.draw(spec(name), 3, q_len=3, kv_len=201)
    mask = rng.random((2, 201)) < 0.7
    mask[1] = False
    check(inputs.giving(key_mask=mask), kernel)
    places = rng.permuted(np.tile(np.arange(201), (2, 1)), axis=1)
    check(inputs.giving(query_positions=places[:, 50:53], key_positions=places), kernel)


@pytest.mark.parametrize("name", ["full", "causal, RoPE", "first tokens kept", "paper"])
@pytest.mark.parametrize("length", [2, 16])
@BOTH
def test_packed_sequences(kernel: str, length: int, name: str) -> None:
    segments = np.stack([np.arange(length) // 5, np.arange(length) >= length - 1])
    check(Inputs.draw(spec(name), 12, q_len=length, kv_len=length).giving(segments=segments), kernel)


@BOTH
def test_what_is_not_finite_reaches_what_sees_it_and_no_other(kernel: str) -> None:
    inputs = Inputs.draw(spec("first tokens kept"), 4, q_len=2, kv_len=200)
    for name, place in (("key", 100), ("value", 150), ("value", 199), ("key", 170), ("value", 0)):
        for bad in (np.nan, np.inf):
            spoiled = inputs.learned[name].copy()
            spoiled[0, 1, place, 3] = bad
            changed = inputs.changing(**{name: spoiled})
            ours = attend(changed, kernel)
            theirs = attend(changed, "plain", torch.float64)
            assert torch.equal(ours.isfinite(), theirs.isfinite()), (name, place, bad)
            assert torch.equal(ours.isnan(), theirs.isnan()), (name, place, bad)


@BOTH
def test_scores_of_ten_thousand(kernel: str) -> None:
    inputs = Inputs.draw(spec("causal, RoPE"), 5, q_len=2, kv_len=200)
    large = inputs.changing(query=inputs.learned["query"] * 1e4).rounded(torch.float32)
    plain = attend(large, "plain", torch.float32)
    assert_close(attend(large, kernel), plain, torch.float32)


@BOTH
def test_tensors_may_lie_as_they_like(kernel: str) -> None:
    inputs = Inputs.draw(spec("paper"), 6, q_len=2, kv_len=130).rounded(torch.float32)
    tensors = inputs.tensors(torch.float32)
    wanted = inputs.oracle()
    for name in ("query", "key", "value"):
        own = tensors[name]
        buffer = torch.full((*own.shape[:2], own.shape[2] + 7, own.shape[3] + 8), torch.nan)
        buffer[:, :, 3:-4, 8:] = own
        for laid in (own.mT.contiguous().mT, own.transpose(1, 2).contiguous().transpose(1, 2), buffer[:, :, 3:-4, 8:]):
            with torch.no_grad():
                output = inputs.attend({**tensors, name: laid}, kernel=kernel)
            assert_close(output, wanted, torch.float32)


@BOTH
@pytest.mark.parametrize("name", ["causal, RoPE", "ALiBi", "paper", "window"])
def test_each_sequence_reads_its_own_keys(kernel: str, name: str) -> None:
    """What lies past a sequence's end in a cache is never read, so it may be anything."""
    one = spec(name)
    lengths = (200, 1, 131)
    inputs = Inputs.draw(one, 7, batch=3, q_len=201, kv_len=201).rounded(torch.float32)
    tensors = inputs.tensors(torch.float32)
    cache = ph.cache.new_cache(one, batch=3, max_seq_len=210)
    if not isinstance(cache, ph.cache.GrowingCache):
        pytest.skip("a window's cache holds no more than it sees")
    params = {n: x for n, x in tensors.items() if n not in ("query", "key", "value")}
    cache.append(tensors["key"][:, :, :200], tensors["value"][:, :, :200], params=params, lengths=lengths)
    for stored in cache._tensors.values():
        for row, length in enumerate(lengths):
            stored[row, :, length:] = torch.nan
    places = torch.tensor(lengths)
    row = torch.arange(3)
    query, key, value = (tensors[n][row, :, places][:, :, None] for n in ("query", "key", "value"))
    rotated = ph.attend(query, key, value, one, params=params, cache=cache, kernel=kernel)
    for index, length in enumerate(lengths):
        heads = {n: tensors[n][index : index + 1] for n in ("query", "key", "value")}
        alone = ph.attend(
            heads["query"][:, :, length : length + 1],
            heads["key"][:, :, : length + 1],
            heads["value"][:, :, : length + 1],
            one,
            params=params,
            kernel="plain",
        )
        assert_close(rotated[index], alone[0], torch.float32)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["causal, RoPE", "ALiBi", "T5", "paper", "softcap, ALiBi, sinks"])
def test_a_token_takes_no_memory_of_the_cache_s_size(kernel: str, dtype: torch.dtype, name: str) -> None:
    """A token is written where it stays, heads are not repeated, and what is largest are the scores of all heads."""
    one = dataclasses.replace(spec(name), storage=ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=64))
    inputs = Inputs.draw(one, 8, batch=1, q_len=1, kv_len=2000)
    tensors = inputs.tensors(torch.float32)
    params = {n: x for n, x in tensors.items() if n not in ("query", "key", "value")}
    query, key, value = (tensors[n].to(dtype) for n in ("query", "key", "value"))
    cache = ph.cache.new_cache(one, batch=1, max_seq_len=2001, dtype=dtype)
    cache.append(key, value, params=params)
    with NothingNewAsLargeAs(cache.allocated_bytes // 4):
        ph.attend(query, key[:, :, :1], value[:, :, :1], one, params=params, cache=cache, kernel=kernel)


@BOTH
def test_the_same_bits_on_every_run(kernel: str) -> None:
    inputs = Inputs.draw(spec("causal, RoPE"), 9, q_len=2, kv_len=300)
    runs = [attend(inputs, kernel) for _ in range(5)]
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_auto_takes_compiled_decoding_where_there_is_numba_and_pytorch_s_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(spec=spec("causal, RoPE"), q_len=1, kv_len=5000)
    monkeypatch.setattr(compiled, "unavailable", lambda: "numba is not installed: pip install 'polyhead[numba]'")
    explained = select.explain_case(case)
    assert explained.kernel == "decode"
    assert explained.others["numba"] == "numba is not installed: pip install 'polyhead[numba]'"
    monkeypatch.setattr(compiled, "unavailable", lambda: None)
    assert select.choose(case).name == "numba"
    assert select.choose(case._replace(needs_grad=True)).name not in ("numba", "decode")
    assert select.explain_case(case._replace(needs_grad=True)).others["decode"] == (
        "nothing is kept for a backward pass"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device": "cuda"}, "it goes by how a processor reads memory, which is not what a cuda device does"),
        ({"compiled": True}, "what it reads goes by the lengths, which a compiled graph leaves open"),
        ({"q_len": 17}, "it is for a few queries, at most 16"),
        ({"spec": ph.AttentionSpec(storage=ph.Grouped(num_heads=2, head_dim=8), weighting=ph.Linear())}, "from sums"),
        ({"weights": True}, "the weights are not kept"),
        ({"dropout": True}, "dropout is in the plain kernel alone"),
        ({"kv_len": 0}, "there is no query or no key"),
    ],
)
def test_what_no_way_of_decoding_computes(changes: dict[str, Any], why: str) -> None:
    case = Case(**{"spec": spec("full"), "q_len": 1, "kv_len": 300, **changes})
    for kernel in (decode.KERNEL, decode_numba.KERNEL):
        assert why in (kernel.refuse(case) or "")


def test_a_few_keys_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(spec=spec("full"), q_len=1, kv_len=100)
    monkeypatch.setattr(decoding, "FEWEST_KEYS", 201)
    assert "below 201 keys" in (decoding.pass_over(case) or "")
    monkeypatch.setattr(decoding, "FEWEST_KEYS", 200)
    assert decoding.pass_over(case) is None
