"""The plain kernel, in what only it does: dropout, weights, empty sequences, rows without a key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import stages
from tests.inputs import INPUTS, Inputs, spec
from tests.tolerances import assert_close

CHOICES: dict[str, dict[str, Any]] = {
    "softmax": {"pattern": ph.Causal()},
    "softcap and ALiBi": {"weighting": ph.Softmax(softcap=2.0), "position": ph.Alibi()},
    "sink and T5": {"weighting": ph.Softmax(sink=True), "position": ph.RelativeBias.t5(num_buckets=8, max_distance=6)},
    "Shaw": {"position": ph.RelativeBias.shaw(max_distance=2)},
    "linear": {"weighting": ph.Linear(), "position": ph.Rotary()},
    "linear with relu": {"weighting": ph.Linear(feature_map="relu")},
    "paper": {"weighting": ph.Differential()},
    "diffllama": {"weighting": ph.Differential(form="diffllama")},
    "clipped": {"weighting": ph.Differential(form="clipped")},
    "dynamic NTK": {"position": ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=3))},
}
by_choices = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


@by_choices
def test_a_row_without_a_key_is_zeros_and_gradients_stay_finite(choices: dict[str, Any]) -> None:
    mask = np.array([[True, False, True, True, True], [False] * 5])
    inputs = Inputs.draw(spec("gqa", **choices), 0).giving(key_mask=mask)
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output, weights = inputs.attend(leaves, return_weights=True)
    assert (output[1] == 0).all()
    assert (weights[1] == 0).all()
    assert (output[0] != 0).any()
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either, that a later step would hide
        (output.sum() + weights.sum()).backward()
    for name, leaf in leaves.items():
        assert leaf.grad.isfinite().all(), name
        if leaf.dim() == 4:
            assert (leaf.grad[1] == 0).all(), name


@by_choices
@pytest.mark.parametrize(
    ("batch", "q_len", "kv_len"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (2, 0, 0), (0, 0, 0), (1, 1, 1)]
)
@pytest.mark.parametrize("storage", ["gqa", "mla"])
def test_empty_and_single_sequences(choices: dict[str, Any], storage: str, batch: int, q_len: int, kv_len: int) -> None:
    inputs = Inputs.draw(spec(storage, **choices), 1, batch=batch, q_len=q_len, kv_len=kv_len)
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output, weights = inputs.attend(leaves, return_weights=True)
    expected = inputs.oracle(return_weights=True)
    assert_close(output, expected[0], torch.float64)
    assert_close(weights, expected[1], torch.float64, what="weights")
    assert_close(inputs.attend(torch.float64), expected[0], torch.float64, what="output of auto")
    assert not (kv_len == 0 and output.any()), "without a key the output is zeros"
    output.sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad.isfinite().all(), name


@pytest.mark.parametrize("feature_map", ["elu+1", "relu", "softplus"])
@pytest.mark.parametrize("position", [ph.NoPosition(), ph.Rotary()], ids=repr)
def test_a_linear_row_whose_features_sum_to_zero_gives_zeros(feature_map: str, position: Any) -> None:
    """With relu the features of query and keys may have no width in common, though RoPE would turn them together."""
    inputs = Inputs.draw(spec("gqa", weighting=ph.Linear(feature_map=feature_map), position=position), 2)
    apart = {name: inputs.learned[name].copy() for name in ("query", "key")}
    for side, array in zip((1.0, -1.0), apart.values(), strict=True):
        array[0] = np.abs(array[0]) * np.repeat([side, -side], 4)
    inputs = inputs.changing(**apart)
    leaves = inputs.tensors(torch.float64, requires_grad=True)
    output = inputs.attend(leaves)
    assert_close(output, inputs.oracle(), torch.float64)
    assert (output[0] == 0).all() == (feature_map == "relu")
    output.sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves.values())


def test_a_clipped_row_without_a_positive_weight_is_zeros() -> None:
    clipped = spec(weighting=ph.Differential(form="clipped", lambda_init=1.0))
    inputs = Inputs.draw(clipped, 3)
    maps = {name: inputs.learned[name].copy() for name in ("query", "key")}
    for array in maps.values():
        array[:, 1::2] = array[:, 0::2]  # both maps of a head are alike, so with λ = 1 nothing is left
    alike = inputs.changing(**maps)
    output, weights = alike.attend(torch.float64, return_weights=True)
    assert (output == 0).all()
    assert (weights == 0).all()
    assert not alike.oracle().any()


# --- dropout


def many(inputs: Inputs, dropout_p: float, draws: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.stack([inputs.attend(torch.float64, dropout_p=dropout_p) for _ in range(draws)])


def test_without_dropout_nothing_is_drawn() -> None:
    inputs = Inputs.draw(spec("gqa"), 4)
    state = torch.get_rng_state()
    assert torch.equal(inputs.attend(torch.float64, dropout_p=0.0), inputs.attend(torch.float64))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "weighting", [ph.Softmax(), ph.Softmax(sink=True), ph.Linear(), ph.Differential(form="clipped")]
)
def test_the_mean_over_draws_is_the_output_without_dropout(weighting: Any) -> None:
    inputs = Inputs.draw(spec("gqa", weighting=weighting), 5, batch=1, q_len=3, kv_len=4)
    copies = {name: inputs.learned[name].repeat(2000, axis=0) for name in INPUTS}  # each of a batch is a draw
    (draws,) = many(inputs.changing(**copies), 0.3, 1)
    error = (draws.mean(0) - inputs.attend(torch.float64)).abs()
    assert (error < 5 * draws.std(0) / 2000**0.5 + 1e-12).all(), "within five standard errors"
    assert draws.std(0).min() > 0


def test_dropped_weights_take_their_value_with_them_and_the_others_grow() -> None:
    inputs = Inputs.draw(spec("mha"), 6, batch=1, q_len=2, kv_len=2)
    weights = torch.tensor(inputs.oracle(return_weights=True)[1])
    value = torch.tensor(inputs.learned["value"])
    subsets = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]])  # each weight dropped, or doubled
    possible = torch.stack([(weights * kept) @ value for kept in subsets])
    for draw in many(inputs, 0.5, 50):
        nearest = (possible - draw).abs().amax(dim=-1).amin(dim=0)
        assert nearest.max() < 1e-12


def test_dropout_is_drawn_anew_and_repeats_with_the_seed() -> None:
    inputs = Inputs.draw(spec("mha"), 7)
    first, second = many(inputs, 0.5, 2)
    assert not torch.equal(first, second)
    assert torch.equal(many(inputs, 0.5, 2), torch.stack([first, second]))


def test_weights_are_returned_as_they_are_before_dropout() -> None:
    inputs = Inputs.draw(spec("mha"), 8)
    _, weights = inputs.attend(torch.float64, return_weights=True, dropout_p=0.5)
    assert_close(weights, inputs.oracle(return_weights=True)[1], torch.float64)


# --- keys turned for each query


@pytest.mark.parametrize("elements", [1, 300, 10**6])
@pytest.mark.parametrize("weighting", [ph.Softmax(), ph.Linear()])
def test_keys_turned_for_each_query_are_formed_a_few_queries_at_a_time(
    monkeypatch: pytest.MonkeyPatch, elements: int, weighting: Any
) -> None:
    dynamic = ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=3))
    inputs = Inputs.draw(spec("gqa", position=dynamic, weighting=weighting), 9, q_len=7, kv_len=8)
    expected = inputs.oracle()
    monkeypatch.setattr(stages, "PER_QUERY_ELEMENTS", elements)
    assert_close(inputs.attend(torch.float64), expected, torch.float64)
    places = np.array([[3, 9, 0, 1, 20, 5, 5], [1, 2, 3, 4, 5, 6, 7]])
    batched = inputs.giving(query_positions=places)
    assert_close(batched.attend(torch.float64), batched.oracle(), torch.float64)
