"""The reference of a whole layer equals the layer, and finds a difference in any of its numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from tests import reference
from tests.inputs import Array, spec
from tests.tolerances import assert_close

ROPE = {"position": ph.Rotary(theta=50.0), "pattern": ph.Causal()}
LOW_RANK_QUERIES = dataclasses.replace(spec("mla").storage, q_lora_rank=7)


def layer(attention: ph.AttentionSpec, **fields: Any) -> ph.LayerSpec:
    return ph.LayerSpec(attention=attention, embed_dim=6, **fields)


LAYERS = {
    "plain": layer(spec("gqa", **ROPE)),
    "biases and norms": layer(spec("gqa", **ROPE), qkv_bias=True, out_bias=True, qk_norm=True, norm_eps=0.1),
    "latent": layer(spec("mla", **ROPE), qkv_bias=True, norm_eps=0.1),
    "low-rank queries": layer(ph.AttentionSpec(storage=LOW_RANK_QUERIES, **ROPE), qkv_bias=True, norm_eps=0.1),
    "latent without norms": layer(ph.AttentionSpec(storage=LOW_RANK_QUERIES, **ROPE), latent_norm=False),
    "paper": layer(spec("gqa", weighting=ph.Differential(), **ROPE), qk_norm=True),
    "diffllama": layer(spec("gqa", weighting=ph.Differential(form="diffllama"), **ROPE)),
    "latent clipped": layer(spec("mla", weighting=ph.Differential(form="clipped"), **ROPE)),
    "Shaw and sinks": layer(
        spec("mha", position=ph.RelativeBias.shaw(max_distance=2), weighting=ph.Softmax(sink=True))
    ),
    "T5": layer(spec("mqa", position=ph.RelativeBias.t5(num_buckets=8, max_distance=6), pattern=ph.Causal())),
    "linear": layer(spec("gqa", weighting=ph.Linear(), **ROPE)),
    "cross": layer(spec("gqa", position=ph.Alibi()), source="cross", context_dim=5, qk_norm=True, norm_eps=0.1),
    "latent cross": layer(spec("mla", position=ph.Rotary(theta=50.0)), source="cross", context_dim=5),
}
by_layer = pytest.mark.parametrize("whole", LAYERS.values(), ids=LAYERS)


def inputs(whole: ph.LayerSpec) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    given = {"x": rng.standard_normal((2, 5, whole.embed_dim))}
    return given if whole.source == "self" else {**given, "context": rng.standard_normal((2, 7, whole.context_dim))}


def compare(whole: ph.LayerSpec, ours: reference.Numbers, theirs: reference.Numbers, **given: Any) -> None:
    arrays = {**inputs(whole), **given}
    output = reference.layer_of(whole, ours)(**{name: torch.tensor(array) for name, array in arrays.items()})
    assert_close(output, reference.forward(whole, theirs, **arrays), torch.float64)


@by_layer
def test_the_reference_is_the_layer(whole: ph.LayerSpec) -> None:
    numbers = reference.drawn_numbers(whole, 1)
    source = next(reversed(inputs(whole).values()))
    compare(whole, numbers, numbers)
    compare(whole, numbers, numbers, key_mask=np.random.default_rng(1).random(source.shape[:2]) < 0.6)


def test_positions_and_segments_mean_what_they_mean_to_the_layer() -> None:
    numbers = reference.drawn_numbers(LAYERS["plain"], 1)
    compare(LAYERS["plain"], numbers, numbers, positions=np.array([[0, 2, 3, 9, 4], [1, 0, 7, 8, 2]]))
    compare(LAYERS["plain"], numbers, numbers, segments=np.array([[0, 0, 1, 1, 1], [2, 2, 2, 2, 0]]))


@by_layer
def test_a_planted_difference_in_any_number_is_found(whole: ph.LayerSpec) -> None:
    numbers = reference.drawn_numbers(whole, 1)
    assert set(numbers) == set(whole.parameter_shapes())
    for name, array in numbers.items():
        planted = array.copy()
        planted[(0,) * array.ndim] += 1e-3
        with pytest.raises(AssertionError, match="differs most"):
            compare(whole, numbers, {**numbers, name: planted})


def test_another_epsilon_is_found() -> None:
    for name in ("biases and norms", "latent"):
        whole = LAYERS[name]
        numbers = reference.drawn_numbers(whole, 1)
        output = reference.forward(dataclasses.replace(whole, norm_eps=0.11), numbers, **inputs(whole))
        with pytest.raises(AssertionError, match="differs most"):
            assert_close(output, reference.forward(whole, numbers, **inputs(whole)), torch.float64)


def test_numbers_come_back_from_a_layer_as_they_went_in() -> None:
    numbers = reference.drawn_numbers(LAYERS["paper"], 1, torch.float32)
    back = reference.numbers_of(reference.layer_of(LAYERS["paper"], numbers, torch.float32))
    for name, array in numbers.items():
        np.testing.assert_array_equal(back[name], array)
