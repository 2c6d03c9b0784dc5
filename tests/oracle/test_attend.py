"""The oracle against formulas written out in the test, one sequence at a time: it is what all else is compared with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import polyhead as ph
from tests.inputs import Array, Inputs, spec
from tests.tolerances import assert_close

LENGTH = 5


def draw(storage: str = "mha", **choices: Any) -> Inputs:
    return Inputs.draw(spec(storage, **choices), 0, batch=1, q_len=LENGTH, kv_len=LENGTH)


def head(inputs: Inputs, name: str, index: int) -> Array:
    return inputs.learned[name][0, index]


def softmax(scores: Array) -> Array:
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(-1, keepdims=True)


def products(inputs: Inputs, query: int = 0, key: int = 0) -> Array:
    return head(inputs, "query", query) @ head(inputs, "key", key).T / math.sqrt(8)


DISTANCE = np.arange(LENGTH)[None, :] - np.arange(LENGTH)[:, None]  # key - query


def check(inputs: Inputs, weights: Array, *, output: Array | None = None, at: int = 0) -> None:
    """Check one head's weights, and its output, by default weights times the first values."""
    ours, our_weights = inputs.oracle(return_weights=True)
    assert_close(our_weights[0, at], weights, "float64", what="weights")
    assert_close(ours[0, at], weights @ head(inputs, "value", 0) if output is None else output, "float64")


def test_softmax_of_scaled_products() -> None:
    inputs = draw()
    check(inputs, softmax(products(inputs)))


def test_groups_share_keys_and_values() -> None:
    inputs = draw("gqa")
    check(inputs, softmax(products(inputs, query=1, key=0)), at=1)
    weights = softmax(products(inputs, query=2, key=1))
    check(inputs, weights, output=weights @ head(inputs, "value", 1), at=2)


def test_causal_weights_are_zero_ahead() -> None:
    inputs = draw(pattern=ph.Causal())
    check(inputs, softmax(np.where(DISTANCE <= 0, products(inputs), -np.inf)))


def test_order_of_scale_softcap_and_bias() -> None:
    inputs = draw(position=ph.Alibi(slopes=(0.5, 1.0, 2.0, 4.0)), weighting=ph.Softmax(scale=0.3, softcap=1.5))
    raw = head(inputs, "query", 0) @ head(inputs, "key", 0).T
    check(inputs, softmax(1.5 * np.tanh(0.3 * raw / 1.5) - 0.5 * np.abs(DISTANCE)))


def test_a_sink_takes_part_of_each_row() -> None:
    inputs = draw(weighting=ph.Softmax(sink=True))
    exponentials = np.exp(products(inputs))
    total = exponentials.sum(-1, keepdims=True) + np.exp(inputs.learned["sinks"][0])
    check(inputs, exponentials / total)


def test_a_table_adds_its_head_s_number() -> None:
    inputs = draw(position=ph.RelativeBias.clipped(max_distance=2))
    bias = inputs.learned["bias_table"][np.clip(DISTANCE, -2, 2) + 2, 1]
    weights = softmax(products(inputs, 1, 1) + bias)
    check(inputs, weights, output=weights @ head(inputs, "value", 1), at=1)


def test_shaw_s_vectors_join_keys_and_values() -> None:
    inputs = draw(position=ph.RelativeBias.shaw(max_distance=2))
    entry = np.clip(DISTANCE, -2, 2) + 2
    keys = head(inputs, "key", 0)[None] + inputs.learned["relative_keys"][entry]
    weights = softmax((head(inputs, "query", 0)[:, None] * keys).sum(-1) / math.sqrt(8))
    values = head(inputs, "value", 0)[None] + inputs.learned["relative_values"][entry]
    check(inputs, weights, output=(weights[..., None] * values).sum(1))


def test_rope_is_the_paper_s_block_diagonal_matrix() -> None:
    inputs = draw(position=ph.Rotary(theta=30.0, pairs="interleaved"))
    frequencies = 30.0 ** -(np.arange(0, 8, 2) / 8)

    def matrix(position: int) -> Array:
        turned = np.zeros((8, 8))
        for plane, frequency in enumerate(frequencies):
            cos, sin = math.cos(position * frequency), math.sin(position * frequency)
            turned[2 * plane : 2 * plane + 2, 2 * plane : 2 * plane + 2] = [[cos, -sin], [sin, cos]]
        return turned

    query = np.stack([matrix(i) @ row for i, row in enumerate(head(inputs, "query", 0))])
    key = np.stack([matrix(j) @ row for j, row in enumerate(head(inputs, "key", 0))])
    check(inputs, softmax(query @ key.T / math.sqrt(8)))


def test_linear_is_a_ratio_of_feature_products() -> None:
    inputs = draw(weighting=ph.Linear(), pattern=ph.Causal())
    query, key = (np.where(x > 0, x + 1, np.exp(x)) for x in (head(inputs, "query", 0), head(inputs, "key", 0)))
    similar = np.where(DISTANCE <= 0, query @ key.T, 0.0)
    check(inputs, similar / similar.sum(-1, keepdims=True))


def test_linear_with_rope_turns_the_numerator_alone() -> None:
    inputs = draw(weighting=ph.Linear(feature_map="softplus"), position=ph.Rotary(theta=30.0))
    query, key = (np.log1p(np.exp(x)) for x in (head(inputs, "query", 0), head(inputs, "key", 0)))
    frequencies = 30.0 ** -(np.arange(0, 8, 2) / 8)
    angles = DISTANCE[..., None] * frequencies  # the score of a pair turned by its distance, as complex numbers
    planes = [x[:, :4] + 1j * x[:, 4:] for x in (query, key)]
    numerator = (planes[0][:, None].conj() * planes[1][None] * np.exp(1j * angles)).real.sum(-1)
    check(inputs, numerator / (query @ key.T).sum(-1, keepdims=True))


def test_differential_is_a_difference_of_two_maps_normalised() -> None:
    inputs = draw(weighting=ph.Differential(layer=2))
    vectors = inputs.learned
    lambdas = [np.exp(vectors[f"lambda_q{i}"] @ vectors[f"lambda_k{i}"]) for i in (1, 2)]
    initial = 0.8 - 0.6 * math.exp(-0.3)
    weights = softmax(products(inputs, 2, 2)) - (lambdas[0] - lambdas[1] + initial) * softmax(products(inputs, 3, 3))
    mixed = weights @ head(inputs, "value", 1)
    normal = mixed / np.sqrt((mixed**2).mean(-1, keepdims=True) + 1e-5) * vectors["sub_norm"]
    check(inputs, weights, output=(1 - initial) * normal, at=1)


def test_clipped_differential_keeps_the_positive_part_and_renormalises() -> None:
    inputs = draw(weighting=ph.Differential(form="clipped", lambda_init=0.8))
    positive = np.maximum(softmax(products(inputs)) - 0.8 * softmax(products(inputs, 1, 1)), 0)
    assert (positive == 0).any()
    check(inputs, positive / positive.sum(-1, keepdims=True))


def test_a_latent_is_expanded_head_by_head() -> None:
    inputs = draw("mla")
    rows, rope = inputs.learned["key"][0, 0, :, :6], inputs.learned["key"][0, 0, :, 6:]
    key = np.concatenate([rows @ inputs.learned["w_uk"][1].T, rope], axis=-1)
    weights = softmax(head(inputs, "query", 1) @ key.T / math.sqrt(12))
    check(inputs, weights, output=weights @ (rows @ inputs.learned["w_uv"][1].T), at=1)


def test_masks_and_segments_take_pairs_away() -> None:
    mask, segments = np.array([[True, True, False, True, True]]), np.array([[0, 0, 0, 1, 1]])
    inputs = draw().giving(key_mask=mask, segments=segments)
    allowed = mask & (segments == segments.T)
    check(inputs, softmax(np.where(allowed, products(inputs), -np.inf)))


def test_a_query_that_may_see_no_key_gets_zeros() -> None:
    for weighting in (ph.Softmax(), ph.Softmax(sink=True), ph.Linear(), ph.Differential()):
        inputs = draw(weighting=weighting).giving(key_mask=np.zeros((1, LENGTH), dtype=bool))
        output, weights = inputs.oracle(return_weights=True)
        assert not output.any()
        assert not weights.any()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_scores_of_any_size_give_weights(scale: float) -> None:
    inputs = draw()
    large = inputs.changing(query=scale * inputs.learned["query"])
    weights = large.oracle(return_weights=True)[1]
    assert_close(weights.sum(-1), np.ones((1, 4, LENGTH)), "float64")


def test_inputs_may_be_lists_and_are_computed_in_float64() -> None:
    query, key, value = [[[[1.0]], [[2.0]]]], [[[[1.0], [0.0]]]], [[[[1.0], [0.0]]]]
    mqa = ph.AttentionSpec(storage=ph.Grouped(num_heads=2, num_kv_heads=1, head_dim=1))
    output = ph.oracle.attend(query, key, value, mqa)
    assert output.dtype == np.float64
    assert_close(output[0, :, 0, 0], [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))], "float64")


# --- bad input


ARRAY = np.zeros((1, 4, LENGTH, 8))
SINK = {"weighting": ph.Softmax(sink=True)}
MISTAKES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"query": ARRAY[0]}, r"query has shape \[4, 5, 8\]; the spec needs \[batch, 4, len, 8\]"),
    ({}, {"key": ARRAY[:, :3]}, r"key has shape \[1, 3, 5, 8\]; the spec needs \[batch, 4, len, 8\]"),
    ({}, {"value": ARRAY[..., :7]}, r"value has shape \[1, 4, 5, 7\]; the spec needs"),
    ({}, {"value": None}, "value must be given for Grouped"),
    ({}, {"value": ARRAY[:, :, :4]}, r"value has shape \[1, 4, 4, 8\], which fits neither query's batch nor key's"),
    ({}, {"key": np.zeros((2, 4, LENGTH, 8))}, r"key has shape \[2, 4, 5, 8\], which fits neither query's batch"),
    ({}, {"params": {"sinks": np.zeros(4)}}, "params has 'sinks', which this spec does not; it has none"),
    ({}, {"query_positions": [0, 1]}, r"query_positions has shape \[2\]; give \[5\] or \[1, 5\]"),
    ({}, {"key_positions": np.zeros((2, 5))}, r"key_positions has shape \[2, 5\]; give \[5\] or \[1, 5\]"),
    ({}, {"key_mask": [True] * 5}, r"key_mask has shape \[5\]; give \[1, 5\]"),
    ({}, {"segments": [[0] * 4]}, r"segments has shape \[1, 4\]; give \[1, 5\]"),
    ({}, {"segments": [[0] * 5], "query": ARRAY[:, :, :3]}, r"segments has shape \[1, 5\]; give \[1, 3\]"),
    (SINK, {}, r"params lacks 'sinks' of shape \[4\], which this spec learns"),
    (SINK, {"params": {"sinks": np.zeros(3)}}, r"params\['sinks'\] has shape \[3\]; the spec needs \[4\]"),
]


@pytest.mark.parametrize(("choices", "wrong", "message"), MISTAKES)
def test_a_mistake_is_named(choices: dict[str, Any], wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ph.ShapeError, match=message):
        ph.oracle.attend(**{"query": ARRAY, "key": ARRAY, "value": ARRAY, "spec": spec(**choices), **wrong})


def test_a_latent_has_no_value() -> None:
    inputs = draw("mla")
    wrong = {**{name: inputs.learned[name] for name in ("query", "key")}, "value": ARRAY}
    params = {name: inputs.learned[name] for name in ("w_uk", "w_uv")}
    with pytest.raises(ph.ShapeError, match="value must not be given for Latent"):
        ph.oracle.attend(**wrong, spec=inputs.spec, params=params)
