"""What lies between products and output, each stage against its formula written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import polyhead as ph
from polyhead.kernels import stages
from polyhead.kernels.common import Call, Case
from tests.inputs import spec
from tests.tolerances import assert_close

PRODUCTS = torch.tensor([[3.0, -1.0, 2.0], [0.5, 4.0, -2.0]], dtype=torch.float64)
ALLOWED = torch.tensor([[True, True, False], [False] * 3])
DISTANCE = torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 0.0]], dtype=torch.float64)  # queries at keys 1 and 2


def call(params: dict[str, torch.Tensor] | None = None, **choices: Any) -> Call:
    """Return a call of one head of width 4 over three keys, with two queries."""
    one = ph.AttentionSpec(storage=ph.Grouped(num_heads=1, head_dim=4), **choices)
    nothing = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    return Call(
        case=Case(spec=one, q_len=2, kv_len=3),
        query=nothing,
        key=nothing,
        value=nothing,
        params=params or {},
        query_positions=torch.tensor([[1, 2]]),
        key_positions=torch.tensor([[0, 1, 2]]),
    )


def weigh(asked: Call, products: torch.Tensor = PRODUCTS, allowed: torch.Tensor | None = None) -> torch.Tensor:
    maps, scale = asked.case.spec.num_maps, asked.case.spec.scale
    query = scale * torch.ones(1, maps, 1, 1, 2, 4, dtype=products.dtype)
    allowed = torch.ones(2, 3, dtype=torch.bool) if allowed is None else allowed
    return stages.weigh(asked, scale * products.view(1, maps, 1, 1, 2, 3), query, allowed.view(1, 1, 1, 2, 3))[0, 0, 0]


def test_scale_then_softcap_then_bias() -> None:
    asked = call(weighting=ph.Softmax(scale=0.3, softcap=0.5), position=ph.Alibi(slopes=[2.0]))
    scores = 0.5 * torch.tanh(0.3 * PRODUCTS / 0.5) - 2.0 * DISTANCE
    assert_close(weigh(asked), scores.softmax(-1), "float64")


def test_a_table_s_bias_comes_after_the_softcap_and_shaw_s_keys_before() -> None:
    table = torch.tensor([[0.7], [-0.2], [0.4]], dtype=torch.float64)
    entries = torch.tensor([[0, 1, 2], [0, 0, 1]])  # key − query, clipped to ±1
    capped = ph.Softmax(scale=0.3, softcap=1.5)
    clipped = weigh(call({"bias_table": table}, weighting=capped, position=ph.RelativeBias.clipped(max_distance=1)))
    assert_close(clipped, (1.5 * torch.tanh(0.3 * PRODUCTS / 1.5) + table[entries, 0]).softmax(-1), "float64")
    vectors = {"relative_keys": table.expand(3, 4)}
    shaw = weigh(call(vectors, weighting=capped, position=ph.RelativeBias.shaw(max_distance=1)))
    assert_close(shaw, (1.5 * torch.tanh(0.3 * (PRODUCTS + 4 * table[entries, 0]) / 1.5)).softmax(-1), "float64")


def test_the_sink_takes_its_part_after_the_mask() -> None:
    asked = call({"sinks": torch.tensor([0.5], dtype=torch.float64)}, weighting=ph.Softmax(scale=1.0, sink=True))
    exponentials = PRODUCTS.exp() * ALLOWED
    expected = exponentials / (exponentials.sum(-1, keepdim=True) + math.exp(0.5))
    assert_close(weigh(asked, allowed=ALLOWED), expected, "float64")


WEIGHTINGS: dict[str, ph.spec.Weighting] = {
    "softmax": ph.Softmax(),
    "sink": ph.Softmax(sink=True),
    "paper": ph.Differential(),
    "clipped": ph.Differential(form="clipped"),
}


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_a_row_that_may_see_nothing_weighs_nothing_and_its_gradient_is_zero(weighting: Any) -> None:
    params = {name: torch.ones(shape) for name, shape in call(weighting=weighting).case.spec.parameter_shapes().items()}
    asked = call(params, weighting=weighting)
    products = PRODUCTS.float().repeat(asked.case.spec.num_maps, 1, 1).requires_grad_()
    weights = weigh(asked, products, ALLOWED)
    assert weights[0].any()
    assert (weights[~ALLOWED] == 0).all()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either, that a later step would hide
        (weights**2).sum().backward()
    assert products.grad.isfinite().all()
    assert (products.grad[..., ~ALLOWED] == 0).all()


def test_differential_weights_are_the_first_map_less_lambda_of_the_second() -> None:
    names = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
    vectors = {name: torch.full((4,), 0.1 * (i + 1), dtype=torch.float64) for i, name in enumerate(names)}
    asked = call(vectors, weighting=ph.Differential(form="diffllama", lambda_init=0.4))
    both = torch.stack([PRODUCTS, PRODUCTS.flip(0)])
    strength = math.exp(4 * 0.1 * 0.2) - math.exp(4 * 0.3 * 0.4) + 0.4
    first, second = (both / 2).softmax(-1)  # scaled by 1/√4
    assert_close(weigh(asked, both), first - strength * second, "float64")


def test_clipped_weights_are_the_positive_ones_made_to_sum_to_one() -> None:
    asked = call(weighting=ph.Differential(form="clipped", lambda_init=0.5))
    both = torch.stack([PRODUCTS, PRODUCTS.flip(0)])
    first, second = (both / 2).softmax(-1)
    positive = (first - 0.5 * second).clamp(min=0)
    assert (positive == 0).any(), "else nothing is clipped"
    assert_close(weigh(asked, both), positive / positive.sum(-1, keepdim=True), "float64")


OUTPUT = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)


def finish(asked: Call, output: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return stages.finish(asked, weights[None, None, None], output[None, None, None])[0, 0]


@pytest.mark.parametrize("weighting", [ph.Softmax(), ph.Differential(form="clipped")], ids=repr)
def test_nothing_is_left_to_do_where_there_is_no_norm(weighting: Any) -> None:
    assert finish(call(weighting=weighting), OUTPUT, PRODUCTS).tolist() == OUTPUT.tolist()


@pytest.mark.parametrize(("form", "gains"), [("paper", [2.0, 0.5]), ("diffllama", [1.0, 1.0])])
def test_differential_output_goes_through_an_rms_norm(form: str, gains: list[float]) -> None:
    gains = torch.tensor(gains, dtype=torch.float64)
    params = {"sub_norm": gains} if form == "paper" else {}
    asked = call(params, weighting=ph.Differential(form=form, lambda_init=0.2, norm_eps=0.5))
    expected = OUTPUT / ((OUTPUT**2).mean(-1, keepdim=True) + 0.5).sqrt() * gains * 0.8
    assert_close(finish(asked, OUTPUT, PRODUCTS), expected, "float64")


def test_shaw_s_values_are_mixed_in_by_the_weights() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]], dtype=torch.float64)
    asked = call({"relative_values": vectors}, position=ph.RelativeBias.shaw(max_distance=1))
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.7, 0.2]], dtype=torch.float64)
    entries = torch.tensor([[0, 1, 2], [0, 0, 1]])
    expected = OUTPUT + (weights[..., None] * vectors[entries]).sum(1)
    assert_close(finish(asked, OUTPUT, weights), expected, "float64")


@pytest.mark.parametrize(
    ("feature_map", "expected"),
    [
        ("elu+1", [math.exp(-2), 1.0, 4.0]),
        ("relu", [0.0, 0.0, 3.0]),
        ("softplus", [math.log1p(math.exp(-2)), math.log(2), math.log1p(math.exp(3))]),
    ],
)
def test_features(feature_map: str, expected: list[float]) -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    assert_close(stages.features(ph.Linear(feature_map=feature_map), x), expected, "float64")


@pytest.mark.parametrize("feature_map", ["elu+1", "softplus"])
def test_features_far_below_zero_keep_their_digits(feature_map: str) -> None:
    """Both are near exp(x) there. Only their proportions count, so small features must be as exact as large ones."""
    x = torch.tensor([-60.0, -30.0, -15.0])
    small = stages.features(ph.Linear(feature_map=feature_map), x)
    assert_close(small.double() / x.double().exp(), torch.ones(3), "float32")


def test_what_differs_by_head_is_laid_out_by_group_without_a_copy() -> None:
    per_head = torch.arange(4.0).view(1, 4, 1, 1)
    grouped = stages.by_group(per_head, spec("gqa"))
    assert grouped[0, :, :, 0, 0].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert grouped.data_ptr() == per_head.data_ptr()
    assert stages.by_group(torch.zeros(2, 1, 3, 5), spec("gqa")).shape == (2, 1, 1, 3, 5)
