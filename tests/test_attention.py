"""`attend` from outside: dtypes, layouts, autocast, numbers that are none, compilation, and its own annotations."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import polyhead as ph
from tests.inputs import INPUTS, VARIED, Inputs, spec
from tests.tolerances import assert_close

by_choices = pytest.mark.parametrize("choices", VARIED.values(), ids=VARIED)
by_storage = pytest.mark.parametrize("storage", ["gqa", "mla"])


# --- dtypes


@by_choices
@by_storage
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_its_rounding_allows(
    choices: dict[str, Any], storage: str, dtype: torch.dtype
) -> None:
    inputs = Inputs.draw(spec(storage, **choices), 0, q_len=6, kv_len=9).rounded(dtype)
    expected, expected_weights = inputs.oracle(return_weights=True)
    tensors = halved(inputs, dtype)
    output = inputs.attend(tensors)
    assert output.dtype == dtype
    assert_close(output, expected, dtype)
    beside, weights = inputs.attend(tensors, return_weights=True)
    assert beside.dtype == dtype
    assert weights.dtype == torch.float32, "weights come in the dtype that sums are made in"
    assert_close(beside, expected, dtype)
    assert_close(weights, expected_weights, dtype, what="weights")


def halved(inputs: Inputs, dtype: torch.dtype, **options: Any) -> dict[str, torch.Tensor]:
    """Return inputs in a dtype, and learned parameters in float32 as training keeps them."""
    tensors = inputs.tensors(torch.float32, **options)
    return {
        name: x.detach().to(dtype).requires_grad_(x.requires_grad) if name in INPUTS else x
        for name, x in tensors.items()
    }


@by_choices
def test_gradients_come_in_the_dtype_of_their_tensor(choices: dict[str, Any]) -> None:
    inputs = Inputs.draw(spec("gqa", **choices), 1)
    tensors = halved(inputs, torch.bfloat16, requires_grad=True)
    inputs.attend(tensors).float().sum().backward()
    for name, tensor in tensors.items():
        assert tensor.grad.dtype == (torch.bfloat16 if name in INPUTS else torch.float32)
        assert tensor.grad.isfinite().all()


def test_float64_stays_float64_everywhere() -> None:
    inputs = Inputs.draw(spec("gqa", position=ph.Rotary()), 2)
    output, weights = inputs.attend(torch.float64, return_weights=True)
    assert output.dtype == weights.dtype == torch.float64


# --- autocast


@by_choices
@by_storage
def test_autocast_casts_the_inputs_and_sums_in_float32(choices: dict[str, Any], storage: str) -> None:
    inputs = Inputs.draw(spec(storage, **choices), 3)
    by_hand, _ = inputs.attend(halved(inputs, torch.bfloat16), return_weights=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, weights = inputs.attend(torch.float32, return_weights=True)
        exact = inputs.attend(torch.float64)
    assert output.dtype == torch.bfloat16
    assert weights.dtype == torch.float32
    assert torch.equal(output, by_hand)
    assert_close(exact, inputs.oracle(), torch.float64)


def test_autocast_brings_inputs_of_different_dtypes_together() -> None:
    inputs = Inputs.draw(spec("gqa"), 4)
    tensors = inputs.tensors(torch.float32)
    mixed = {**tensors, "query": tensors["query"].half()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert inputs.attend(mixed).dtype == torch.bfloat16
    with pytest.raises(ph.ShapeError, match="make alike"):
        inputs.attend(mixed)


# --- layouts


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "heads innermost": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "width outermost": lambda x: x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
    "every second": lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2],
    "cut from a longer one": lambda x: torch.cat([x, x.new_full(x.shape, torch.nan)], dim=2)[:, :, : x.shape[2]],
}


@by_choices
@by_storage
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_in_memory_makes_no_difference(
    choices: dict[str, Any], storage: str, layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    inputs = Inputs.draw(spec(storage, **choices), 5)
    tensors = inputs.tensors(torch.float64)
    laid = {name: layout(x) if name in INPUTS else x for name, x in tensors.items()}
    assert not laid["query"].is_contiguous()
    assert_close(inputs.attend(laid), inputs.oracle(), torch.float64)


@by_choices
def test_nothing_given_is_changed(choices: dict[str, Any]) -> None:
    inputs = Inputs.draw(spec("gqa", **choices), 6).giving(key_mask=np.array([[True] * 5, [False] * 5]))
    tensors = inputs.tensors(torch.float32)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    inputs.attend(tensors)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_keys_and_values_may_be_shared_over_the_batch() -> None:
    inputs = Inputs.draw(spec("gqa"), 7)
    tensors = inputs.tensors(torch.float64)
    shared = {name: tensors[name][:1].expand(2, -1, -1, -1) for name in ("key", "value")}
    both = inputs.changing(**{name: x.numpy() for name, x in shared.items()})
    assert_close(inputs.attend({**tensors, **shared}), both.oracle(), torch.float64)


# --- numbers that are none


@by_choices
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_no_number_spoils_its_own_row_alone(choices: dict[str, Any], bad: float) -> None:
    inputs = Inputs.draw(spec("mha", **choices), 8)
    query = inputs.learned["query"].copy()
    query[0, 0, 2] = bad
    output = inputs.changing(query=query).attend(torch.float64)
    spoiled = np.zeros(output.shape[:3], dtype=bool)
    spoiled[0, 0, 2] = True
    assert_close(output.numpy()[~spoiled], inputs.oracle()[~spoiled], torch.float64)


@pytest.mark.parametrize("kernel", ["dense", "plain"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf])
def test_an_infinite_value_reaches_only_the_rows_that_may_see_it(kernel: str, bad: float) -> None:
    inputs = Inputs.draw(spec("mha", pattern=ph.Causal()), 9)
    value = inputs.learned["value"].copy()
    value[:, :, 3, 0] = bad
    output = inputs.changing(value=value).attend(torch.float64, kernel=kernel)
    assert not output[:, :, 3:, 0].isfinite().any()
    assert_close(output[:, :, :3], inputs.oracle()[:, :, :3], torch.float64)
    assert_close(output[..., 1:], inputs.oracle()[..., 1:], torch.float64)


@by_choices
def test_scores_far_beyond_the_range_of_exp_stay_finite(choices: dict[str, Any]) -> None:
    inputs = Inputs.draw(spec("gqa", **choices), 10)
    large = inputs.changing(query=inputs.learned["query"] * 1e4)
    leaves = large.tensors(torch.float32, requires_grad=True)
    output = large.attend(leaves)
    assert output.isfinite().all()
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


# --- positions


def test_positions_may_be_far_out() -> None:
    """RoPE's angles are computed in float64, so a million tokens on they are as good as at the start."""
    inputs = Inputs.draw(spec("gqa", position=ph.Rotary(), pattern=ph.Causal()), 11)
    far = inputs.giving(query_positions=np.arange(5) + 1_000_000, key_positions=np.arange(5) + 1_000_000)
    assert_close(far.attend(torch.float32), far.oracle(), torch.float32)
    assert_close(far.attend(torch.float32), inputs.oracle(), torch.float32)


@pytest.mark.parametrize(
    "given", [{"query_positions": [2, 3, 4]}, {"key_positions": [0, 1, 2, 3, 4]}, {"query_positions": [[2, 3, 4]] * 2}]
)
def test_positions_alone_on_one_side_leave_the_other_implied(given: dict[str, Any]) -> None:
    inputs = Inputs.draw(spec("gqa", position=ph.Rotary(), pattern=ph.Causal()), 12, q_len=3, kv_len=5)
    places = {name: np.array(values) for name, values in given.items()}
    assert_close(inputs.giving(**places).attend(torch.float64), inputs.attend(torch.float64), torch.float64)


# --- torch's own machinery


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"position": ph.Rotary(pairs="interleaved"), "weighting": ph.Softmax(softcap=3.0)},
        {"position": ph.Alibi(), "weighting": ph.Softmax(sink=True)},
        {"position": ph.RelativeBias.shaw(max_distance=1)},
        {"position": ph.Rotary(), "weighting": ph.Linear(feature_map="softplus")},
        {"weighting": ph.Differential()},
    ],
    ids=repr,
)
def test_second_derivatives_exist(choices: dict[str, Any]) -> None:
    inputs = Inputs.draw(spec("gqa", **choices), 13, batch=1, q_len=2, kv_len=3)
    leaves = inputs.tensors(torch.float64, requires_grad=True)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        return inputs.attend(dict(zip(leaves, tensors, strict=True)), kernel="plain")

    assert torch.autograd.gradgradcheck(run, tuple(leaves.values()), fast_mode=True)


@pytest.fixture(scope="module")
def checked_attend() -> Callable[..., Any]:
    """Return `attend` with its jaxtyping annotations checked at run time, from a second copy of its module."""
    name = "polyhead.attention"
    original = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyhead.attention", original)  # restored at the end, on the package and among modules
        patch.delitem(sys.modules, name)
        with jaxtyping.install_import_hook(name, "beartype.beartype"):
            checked: Callable[..., Any] = importlib.import_module(name).attend
    return checked


@by_choices
@by_storage
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"query_positions": (2, 5)},
        {"query_positions": (5,), "key_positions": (2, 5)},
        {"key_mask": (2, 5), "segments": (2, 5), "query_positions": (2, 5), "key_positions": (5,)},
    ],
)
def test_the_annotations_admit_every_call_that_is_right(
    checked_attend: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    choices: dict[str, Any],
    storage: str,
    given: dict[str, tuple[int, ...]],
) -> None:
    arrays = {name: np.ones(shape, dtype=bool if name == "key_mask" else np.int64) for name, shape in given.items()}
    inputs = Inputs.draw(spec(storage, **choices), 14).giving(**arrays)
    plain = inputs.attend(torch.float64)
    monkeypatch.setattr(ph, "attend", checked_attend, raising=False)
    assert torch.equal(inputs.attend(torch.float64), plain)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda x: x[0]),
        ("key", lambda x: x.long()),
        ("value", lambda x: x[:, :, :-1]),
        ("key", lambda x: x[:1]),
    ],
)
def test_the_annotations_refuse_a_call_that_is_wrong(
    checked_attend: Callable[..., Any], name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    inputs = Inputs.draw(spec("gqa"), 15)
    tensors = inputs.tensors(torch.float32)
    with pytest.raises(jaxtyping.TypeCheckError, match=name):
        checked_attend(**{**tensors, name: change(tensors[name])}, spec=inputs.spec)
