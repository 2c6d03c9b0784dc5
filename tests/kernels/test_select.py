"""Which kernel runs: every refusal, what explain says of it, and that a name never falls back."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import polyhead as ph
from polyhead.cache import new_cache
from polyhead.kernels import flex_operator, select
from polyhead.kernels.common import Case
from tests.inputs import Inputs, spec
from tests.strategies import specs
from tests.tolerances import assert_close

DYNAMIC = ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=4))
LINEAR, CAUSAL_LINEAR = {"weighting": ph.Linear()}, {"weighting": ph.Linear(), "pattern": ph.Causal()}
MLA = {"storage": "mla"}
LINKS = {"pattern": ph.RandomLinks(per_query=2, seed=0)}

BIAS = "SDPA takes a bias only as a whole q_len × kv_len matrix for each head"
PER_QUERY = "each query meets keys rotated by frequencies of its own"
SHAW = "Shaw's bias goes by the query, not by the distance alone"
ORDER = "a running sum follows the keys in their order, and these positions need not"

# Every refusal of every kernel: choices, what else is asked of the call, why, and what auto picks instead.
Row = tuple[dict[str, Any], dict[str, Any], str, str]
REFUSALS: dict[str, list[Row]] = {
    "linear": [
        ({}, {}, "running sums are linear weighting's alone, not Softmax's", "dense"),
        (
            {"weighting": ph.Differential()},
            {},
            "running sums are linear weighting's alone, not Differential's",
            "plain",
        ),
        ({**LINEAR, "position": DYNAMIC}, {}, PER_QUERY, "plain"),
        (LINEAR, {"weights": True}, "sums over keys have no weights", "plain"),
        (
            LINEAR,
            {"dropout": True},
            "dropout is in the plain kernel alone: sums over keys have no weights to drop",
            "plain",
        ),
        (LINEAR, {"q_len": 5, "segments": True}, "a running sum does not start again where a segment does", "plain"),
        (CAUSAL_LINEAR, {"aligned": False}, ORDER, "plain"),
        (CAUSAL_LINEAR, {"q_len": 6}, ORDER, "plain"),
    ],
    "absorbed": [
        ({}, {}, "there is no latent in Grouped storage", "dense"),
        ({**MLA, **LINEAR}, {}, "linear weighting's feature map needs the keys of every head", "linear"),
        ({**MLA, "position": DYNAMIC}, {}, PER_QUERY, "plain"),
        (MLA, {"dropout": True}, "dropout is in the plain kernel alone", "plain"),
    ],
    "numba": [
        ({}, {"q_len": 17, "kv_len": 17}, "it is for a few queries, at most 16", "dense"),
        ({}, {"needs_grad": True}, "nothing is kept for a backward pass", "dense"),
        (LINEAR, {}, "linear weighting decodes from sums", "linear"),
        ({"position": ph.RelativeBias.shaw(max_distance=2)}, {}, SHAW, "plain"),
        (
            {"weighting": ph.Differential(form="clipped")},
            {},
            "clipping needs the weights of both maps at once",
            "plain",
        ),
        ({}, {"dtype": torch.float64}, "the loops are for float32 and bfloat16, not float64", "dense"),
    ],
    "decode": [
        ({}, {"q_len": 17, "kv_len": 17}, "it is for a few queries, at most 16", "dense"),
        ({}, {"needs_grad": True}, "nothing is kept for a backward pass", "dense"),
        (LINEAR, {}, "linear weighting decodes from sums", "linear"),
        (MLA, {}, "keys and values would have to be expanded from the latent", "absorbed"),
        ({"position": DYNAMIC}, {}, PER_QUERY, "plain"),
        ({}, {"dropout": True}, "dropout is in the plain kernel alone", "plain"),
        ({}, {"weights": True}, "the weights are not kept", "plain"),
        ({}, {"kv_len": 0}, "there is no query or no key", "plain"),
    ],
    "dense": [
        (LINEAR, {}, "SDPA knows softmax weights alone, not Linear", "linear"),
        ({"weighting": ph.Differential()}, {}, "SDPA knows softmax weights alone, not Differential", "plain"),
        ({"weighting": ph.Softmax(softcap=1.0)}, {}, "SDPA has no softcap", "plain"),
        ({"weighting": ph.Softmax(sink=True)}, {}, "SDPA has no sink", "plain"),
        ({"position": ph.Alibi()}, {}, BIAS, "plain"),
        ({"position": ph.RelativeBias.t5()}, {}, BIAS, "plain"),
        ({"position": ph.RelativeBias.clipped(max_distance=2)}, {}, BIAS, "plain"),
        ({"position": ph.RelativeBias.shaw(max_distance=2)}, {}, BIAS, "plain"),
        ({"position": DYNAMIC}, {}, PER_QUERY, "plain"),
        (
            {},
            {"dropout": True},
            "dropout is in the plain kernel alone: SDPA on the CPU would build the whole matrix for it",
            "plain",
        ),
        ({}, {"weights": True}, "SDPA does not return weights", "plain"),
        ({}, {"q_len": 0}, "there is no query or no key", "plain"),
        ({}, {"kv_len": 0}, "there is no query or no key", "plain"),
    ],
    "flex": [  # on a GPU it refuses more, see test_flex
        ({}, {}, "FlexAttention is for GPUs here, not cpu: on the CPU tiles do better", "dense"),
    ],
    "gathered": [
        ({}, {}, "its pattern bounds no query's keys, so that there is no short list of them", "dense"),
        (
            LINKS,
            {"dropout": True},
            "dropout is in the plain kernel alone: the backward pass would have to draw it again",
            "plain",
        ),
        (LINKS, {"weights": True}, "a piece's weights are not kept", "plain"),
        (
            {**LINKS, "weighting": ph.Softmax(sink=True)},
            {"aligned": False},
            "keys are listed for positions that count on, and these are given",
            "plain",
        ),
        (CAUSAL_LINEAR, {"q_len": 5, "state": True}, "a cache of sums has no keys left to gather", "linear"),
    ],
    "plain": [
        (CAUSAL_LINEAR, {"q_len": 5, "state": True}, "a cache of sums has no keys left to score", "linear"),
    ],
}
WALKED = [(kernel, *row) for kernel, rows in REFUSALS.items() for row in rows]
by_refusal = pytest.mark.parametrize(("kernel", "choices", "asked", "reason", "instead"), WALKED)


def case(choices: dict[str, Any], **asked: Any) -> Case:
    return Case(**{"spec": spec(**{"storage": "gqa", **choices}), "q_len": 3, "kv_len": 5, **asked})


def attend(choices: dict[str, Any], asked: dict[str, Any], **options: Any) -> torch.Tensor:
    """Call `attend` with what a case asks."""
    one = case(choices, **asked)
    inputs = Inputs.draw(one.spec, 0, q_len=one.q_len, kv_len=one.kv_len)
    tensors = inputs.tensors(one.dtype, requires_grad=one.needs_grad)
    if not one.aligned:
        inputs = inputs.giving(query_positions=np.arange(one.q_len))
    if one.segments:
        inputs = inputs.giving(segments=np.zeros((2, one.q_len), dtype=np.int64))
    if one.state:
        options["cache"] = new_cache(one.spec, batch=2)
    return inputs.attend(tensors, dropout_p=0.5 * one.dropout, return_weights=one.weights, **options)


@by_refusal
def test_auto_leaves_a_kernel_that_refuses(
    kernel: str, choices: dict[str, Any], asked: dict[str, Any], reason: str, instead: str
) -> None:
    one = case(choices, **asked)
    assert select.choose(one).name == instead
    explanation = select.explain_case(one)
    assert explanation.kernel == instead
    assert explanation.others[kernel] == reason
    assert f"\nnot {kernel}: {reason}" in str(explanation)


@by_refusal
def test_a_kernel_asked_for_by_name_raises_and_never_falls_back(
    kernel: str, choices: dict[str, Any], asked: dict[str, Any], reason: str, instead: str
) -> None:
    message = f"kernel='{kernel}' does not run this: {reason}; use kernel='auto', which picks '{instead}'"
    with pytest.raises(ph.UnsupportedError, match=f"^{re.escape(message)}$"):
        select.choose(case(choices, **asked), kernel)
    with pytest.raises(ph.UnsupportedError, match=f"^{re.escape(message)}$"):
        attend(choices, asked, kernel=kernel)
    attend(choices, asked, kernel=instead)


EXPAND = "with this many queries, expanding the stored rows once takes fewer multiplications"


@pytest.mark.parametrize(
    ("choices", "asked", "others"),
    [
        (MLA, {"q_len": 4}, {"absorbed": EXPAND}),
        (MLA, {"q_len": 3}, {"dense": "it would run, and auto prefers absorbed"}),
        ({**MLA, "weighting": ph.Softmax(sink=True)}, {"q_len": 4}, {"absorbed": EXPAND, "dense": "SDPA has no sink"}),
        (LINEAR, {}, {"plain": "it would run, and auto prefers linear"}),
        ({}, {}, {"plain": "it would run, and auto prefers dense"}),
    ],
)
def test_a_kernel_that_auto_passes_over_runs_when_it_is_asked_for(
    choices: dict[str, Any], asked: dict[str, Any], others: dict[str, str]
) -> None:
    one = case(choices, **asked)
    explanation = select.explain_case(one)
    assert {name: explanation.others[name] for name in others} == others
    able = [kernel.name for kernel in select.KERNELS if kernel.refuse(one) is None]
    assert {name for name, why in others.items() if not why.startswith("SDPA")} <= set(able)
    for name in able:
        assert select.choose(one, name).name == name
        assert_close(attend(choices, asked, kernel=name), attend(choices, asked), torch.float32, what=name)


@pytest.mark.parametrize(
    ("asked", "reason"), [("weights", "sums over keys have no weights"), ("dropout", "dropout is")]
)
def test_where_no_kernel_runs_each_says_why(asked: str, reason: str) -> None:
    """What a cache of sums has forgotten, no kernel can weigh or drop."""
    nothing = case(CAUSAL_LINEAR, q_len=5, state=True, **{asked: True})
    reasons = [f"{kernel.name}: {kernel.refuse(nothing)}" for kernel in select.KERNELS]
    assert reasons[0].startswith(f"linear: {reason}")
    message = f"^{re.escape('no kernel runs this (' + '; '.join(reasons) + ')')}$"
    for name in ("auto", "plain"):
        with pytest.raises(ph.UnsupportedError, match=message):
            select.choose(nothing, name)
    with pytest.raises(ph.UnsupportedError, match=message):
        select.explain_case(nothing)
    with pytest.raises(ph.UnsupportedError, match=message):
        attend(CAUSAL_LINEAR, {"q_len": 5, "state": True, asked: True})


ANYTHING: list[dict[str, Any]] = [
    {},
    {"q_len": 1},
    {"q_len": 9},
    {"key_mask": True},
    {"segments": True, "q_len": 5},
    {"aligned": False},
    {"needs_grad": True},
    {"dtype": torch.bfloat16},
    {"device": "cuda"},
]


@pytest.mark.parametrize("asked", ANYTHING)
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"position": ph.Rotary(), "pattern": ph.Causal()},
        {"pattern": ph.BigBird()},
        {"weighting": ph.Softmax(scale=0.3)},
    ],
)
def test_softmax_over_stored_heads_is_the_dense_kernel_s(choices: dict[str, Any], asked: dict[str, Any]) -> None:
    assert select.choose(case(choices, **asked)).name == "dense"


@pytest.mark.parametrize("asked", [one for one in ANYTHING if "segments" not in one])
@pytest.mark.parametrize("storage", ["gqa", "mla"])
@pytest.mark.parametrize("position", [ph.NoPosition(), ph.Rotary()], ids=repr)
def test_sums_over_all_keys_are_the_linear_kernel_s(storage: str, position: Any, asked: dict[str, Any]) -> None:
    assert select.choose(case({**LINEAR, "storage": storage, "position": position}, **asked)).name == "linear"


@pytest.mark.parametrize("asked", [one for one in ANYTHING if "q_len" not in one])
@pytest.mark.parametrize(
    "choices",
    [{"position": ph.Rotary(), "pattern": ph.Causal()}, {"weighting": ph.Differential()}, {"position": ph.Alibi()}],
)
@pytest.mark.parametrize("weights", [False, True])
def test_one_query_over_a_latent_is_the_absorbed_kernel_s(
    choices: dict[str, Any], asked: dict[str, Any], weights: bool
) -> None:
    assert select.choose(case({**MLA, **choices}, **asked, q_len=1, weights=weights)).name == "absorbed"


FLAGS = ("needs_grad", "aligned", "key_mask", "segments", "dropout", "weights")


@given(specs(), st.integers(0, 5), st.integers(0, 5), st.fixed_dictionaries(dict.fromkeys(FLAGS, st.booleans())))
def test_some_kernel_takes_every_legal_case(
    drawn: ph.AttentionSpec, q_len: int, kv_len: int, asked: dict[str, bool]
) -> None:
    every = Case(spec=drawn, q_len=q_len, kv_len=kv_len, **asked)
    chosen = select.choose(every)
    assert chosen.refuse(every) is None
    assert chosen.name == select.explain_case(every).kernel == select.choose(every, "auto").name


def test_a_name_that_no_kernel_has_is_refused_with_the_names_there_are() -> None:
    inputs = Inputs.draw(spec(), 0)
    with pytest.raises(ph.UnknownNameError, match="no kernel is called 'dens'; did you mean dense\\?"):
        inputs.attend(torch.float32, kernel="dens")
    names = "auto, linear, absorbed, numba, decode, dense, flex, gathered, tiled, blockwise, plain"
    with pytest.raises(ph.UnknownNameError, match=f"no kernel is called 'flash'; use one of {names}$"):
        inputs.attend(torch.float32, kernel="flash")


def test_every_kernel_has_a_name_of_its_own_and_says_how_it_computes() -> None:
    names = [kernel.name for kernel in select.KERNELS]
    assert len(set(names)) == len(names)
    assert "auto" not in names
    assert all(kernel.summary for kernel in select.KERNELS)


def test_explain_reads_as_a_line_for_each_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_operator, "missing", lambda: None)
    asked = ph.explain(spec("gqa"), q_len=1, kv_len=32_768, dtype=torch.bfloat16, device="cuda:0", needs_grad=True)
    assert str(asked).splitlines() == [
        "dense: PyTorch's scaled_dot_product_attention",
        "not linear: running sums are linear weighting's alone, not Softmax's",
        "not absorbed: there is no latent in Grouped storage",
        "not numba: it goes by how a processor reads memory, which is not what a cuda device does",
        "not decode: it goes by how a processor reads memory, which is not what a cuda device does",
        "not flex: below 65536 pairs, listing blocks costs more than it saves",
        "not gathered: its pattern bounds no query's keys, so that there is no short list of them",
        "not tiled: the operator behind it is the CPU's, not cuda's",
        "not blockwise: the scores of all queries fit into one block",
        "not plain: it would run, and auto prefers dense",
    ]
    asked = ph.explain(spec("mla", weighting=ph.Softmax(sink=True)), q_len=64, kv_len=512)
    assert str(asked).splitlines() == [
        "plain: the whole score matrix, step by step",
        "not linear: running sums are linear weighting's alone, not Softmax's",
        f"not absorbed: {EXPAND}",
        "not numba: it is for a few queries, at most 16",
        "not decode: it is for a few queries, at most 16",
        "not dense: SDPA has no sink",
        "not flex: FlexAttention is for GPUs here, not cpu: on the CPU tiles do better",
        "not gathered: its pattern bounds no query's keys, so that there is no short list of them",
        "not tiled: below 65536 pairs, tiles cost more than they save",
        "not blockwise: the scores of all queries fit into one block",
    ]


def test_explain_takes_what_a_call_may_ask() -> None:
    assert ph.explain(spec(**CAUSAL_LINEAR), q_len=2, kv_len=2, aligned=False).kernel == "plain"
    assert ph.explain(spec(**CAUSAL_LINEAR), q_len=2, kv_len=2, aligned=False, state=True).kernel == "linear"
    assert ph.explain(spec(), q_len=2, kv_len=2, weights=True).kernel == "plain"
    assert ph.explain(spec(), q_len=2, kv_len=2, dropout=True).kernel == "plain"
    assert ph.explain(spec(), q_len=2, kv_len=2, key_mask=True, segments=True, aligned=False).kernel == "dense"
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        ph.explain(spec(), q_len=2, kv_len=2, colour=True)
    with pytest.raises(RuntimeError, match="device"):
        ph.explain(spec(), q_len=2, kv_len=2, device="abacus")


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ({}, {}),
        ({"weights": True}, {"return_weights": True}),
        ({"dropout": True}, {"dropout_p": 0.1}),
        ({"key_mask": True}, {"key_mask": torch.ones(2, 4, dtype=torch.bool)}),
        ({"segments": True}, {"segments": torch.zeros(2, 4, dtype=torch.int64)}),
        ({"aligned": False}, {"query_positions": torch.arange(4)}),
        ({"aligned": False}, {"key_positions": torch.arange(4)}),
    ],
)
def test_attend_describes_its_call_as_explain_is_asked(
    monkeypatch: pytest.MonkeyPatch, expected: dict[str, bool], options: dict[str, Any]
) -> None:
    seen = []

    def spy(case: Case, kernel: str = "auto") -> select.Kernel:
        seen.append(case)
        return choose(case, kernel)

    choose = select.choose
    monkeypatch.setattr(select, "choose", spy)
    inputs = Inputs.draw(spec(), 0, q_len=4, kv_len=4)
    inputs.attend(torch.float32, **options)
    assert seen == [Case(spec=inputs.spec, q_len=4, kv_len=4, dtype=torch.float32, **expected)]


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"pattern": ph.Causal()}, [{"kv_len": 2}, {"kv_len": 4}]),
        ({"pattern": ph.SlidingWindow.causal(8)}, [{"kv_len": 2, "aligned": False}, {"kv_len": 4, "aligned": False}]),
        (CAUSAL_LINEAR, [{"kv_len": 2, "state": True, "aligned": False}] * 2),
    ],
)
def test_a_cache_describes_its_call_over_all_that_it_holds(
    monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any], expected: list[dict[str, Any]]
) -> None:
    seen = []
    choose = select.choose
    monkeypatch.setattr(select, "choose", lambda case, kernel: seen.append(case) or choose(case, kernel))
    inputs = Inputs.draw(spec("gqa", **choices), 0, q_len=2, kv_len=2)
    cache = new_cache(inputs.spec, batch=2)
    for _ in expected:
        inputs.attend(torch.float32, cache=cache)
    assert seen == [Case(spec=inputs.spec, q_len=2, **one) for one in expected]


@pytest.mark.parametrize("name", ["query", "key", "value", "sinks"])
def test_a_gradient_asked_of_any_tensor_is_part_of_the_case(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen = []
    choose = select.choose
    monkeypatch.setattr(select, "choose", lambda case, kernel: seen.append(case.needs_grad) or choose(case, kernel))
    inputs = Inputs.draw(spec(weighting=ph.Softmax(sink=True)), 0)
    tensors = inputs.tensors(torch.float32)
    tensors[name].requires_grad_()
    inputs.attend(tensors)
    with torch.no_grad():
        inputs.attend(tensors)
    inputs.attend(torch.float32)
    assert seen == [True, False, False]


def test_a_case_is_data() -> None:
    one = case({})
    assert case({}) == one
    assert one != case({}, q_len=4)
