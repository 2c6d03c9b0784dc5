"""Which kernel runs: every refusal, what explain says of it, and that a name never falls back."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

import polyhead as ph
from polyhead.kernels import select
from polyhead.kernels.common import Case
from tests.inputs import Inputs, spec
from tests.strategies import specs

DYNAMIC = ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=4))
ONE_QUERY_BIAS = "SDPA takes a bias only as a whole q_len × kv_len matrix for each head"

# What the dense kernel refuses: choices, what else is asked of the call, and why. The plain one refuses nothing.
REFUSALS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"weighting": ph.Linear()}, {}, "SDPA knows softmax weights alone, not Linear"),
    ({"weighting": ph.Differential()}, {}, "SDPA knows softmax weights alone, not Differential"),
    ({"weighting": ph.Softmax(softcap=1.0)}, {}, "SDPA has no softcap"),
    ({"weighting": ph.Softmax(sink=True)}, {}, "SDPA has no sink"),
    ({"position": ph.Alibi()}, {}, ONE_QUERY_BIAS),
    ({"position": ph.RelativeBias.t5()}, {}, ONE_QUERY_BIAS),
    ({"position": ph.RelativeBias.clipped(max_distance=2)}, {}, ONE_QUERY_BIAS),
    ({"position": ph.RelativeBias.shaw(max_distance=2)}, {}, ONE_QUERY_BIAS),
    ({"position": DYNAMIC}, {}, "each query meets keys rotated by frequencies of its own"),
    (
        {},
        {"dropout": True},
        "dropout is in the plain kernel alone: SDPA on the CPU would build the whole matrix for it",
    ),
    ({}, {"weights": True}, "SDPA does not return weights"),
    ({}, {"q_len": 0}, "there is no query or no key"),
    ({}, {"kv_len": 0}, "there is no query or no key"),
]
by_refusal = pytest.mark.parametrize(("choices", "asked", "reason"), REFUSALS)


def case(choices: dict[str, Any], **asked: Any) -> Case:
    return Case(**{"spec": spec("gqa", **choices), "q_len": 3, "kv_len": 5, **asked})


@by_refusal
def test_auto_passes_over_a_kernel_that_refuses(choices: dict[str, Any], asked: dict[str, Any], reason: str) -> None:
    assert select.choose(case(choices, **asked)).name == "plain"
    assert select.explain(case(choices, **asked)).others == {"dense": reason}


@by_refusal
def test_a_kernel_asked_for_by_name_raises_and_never_falls_back(
    choices: dict[str, Any], asked: dict[str, Any], reason: str
) -> None:
    message = f"kernel='dense' does not run this: {reason}; use kernel='auto', which picks 'plain'"
    with pytest.raises(ph.UnsupportedError, match=f"^{re.escape(message)}$"):
        select.choose(case(choices, **asked), "dense")
    lengths = {"q_len": asked.get("q_len", 3), "kv_len": asked.get("kv_len", 5)}
    options = {"dropout_p": 0.5 * asked.get("dropout", False), "return_weights": asked.get("weights", False)}
    inputs = Inputs.draw(spec("gqa", **choices), 0, **lengths)
    with pytest.raises(ph.UnsupportedError, match=re.escape(reason)):
        inputs.attend(torch.float32, kernel="dense", **options)
    inputs.attend(torch.float32, kernel="plain", **options)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"q_len": 1},
        {"q_len": 9},
        {"key_mask": True},
        {"segments": True, "q_len": 5},
        {"aligned": False},
        {"needs_grad": True},
        {"dtype": torch.bfloat16},
        {"device": "cuda"},
    ],
)
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"position": ph.Rotary(), "pattern": ph.Causal()},
        {"pattern": ph.BigBird()},
        {"weighting": ph.Softmax(scale=0.3)},
    ],
)
def test_the_dense_kernel_takes_the_rest(choices: dict[str, Any], asked: dict[str, Any]) -> None:
    explanation = select.explain(case(choices, **asked))
    assert explanation.kernel == "dense"
    assert explanation.others == {"plain": "it would run, and auto prefers dense"}
    assert select.choose(case(choices, **asked), "plain").name == "plain"


@given(specs(), st.integers(0, 5), st.integers(0, 5), st.booleans(), st.booleans())
def test_some_kernel_takes_every_legal_case(
    drawn: ph.AttentionSpec, q_len: int, kv_len: int, dropout: bool, weights: bool
) -> None:
    every = Case(spec=drawn, q_len=q_len, kv_len=kv_len, dropout=dropout, weights=weights)
    chosen = select.choose(every)
    assert chosen.refuse(every) is None
    assert chosen.name == select.explain(every).kernel == select.choose(every, "auto").name


def test_a_name_that_no_kernel_has_is_refused_with_the_names_there_are() -> None:
    inputs = Inputs.draw(spec(), 0)
    with pytest.raises(ph.UnknownNameError, match="no kernel is called 'dens'; did you mean dense\\?"):
        inputs.attend(torch.float32, kernel="dens")
    with pytest.raises(ph.UnknownNameError, match="no kernel is called 'flash'; use one of auto, dense, plain"):
        inputs.attend(torch.float32, kernel="flash")


def test_every_kernel_has_a_name_of_its_own_and_says_how_it_computes() -> None:
    names = [kernel.name for kernel in select.KERNELS]
    assert len(set(names)) == len(names)
    assert "auto" not in names
    assert all(kernel.summary for kernel in select.KERNELS)


def test_explain_reads_as_a_line_for_each_kernel() -> None:
    text = str(ph.explain(spec("gqa", weighting=ph.Softmax(sink=True)), q_len=1, kv_len=32_768))
    assert text == "plain: the whole score matrix, step by step\nnot dense: SDPA has no sink"
    text = str(ph.explain(spec("gqa"), q_len=1, kv_len=32_768, dtype=torch.bfloat16, device="cuda:0", needs_grad=True))
    assert text == ("dense: PyTorch's scaled_dot_product_attention\nnot plain: it would run, and auto prefers dense")


def test_explain_takes_what_a_call_may_ask() -> None:
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
    assert dataclasses.replace(one) == one
    assert one != case({}, q_len=4)
