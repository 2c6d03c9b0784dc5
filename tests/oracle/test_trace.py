"""One query's stages end where the whole matrix's row does, and each follows from those before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.oracle import attend_tiled, trace
from polyhead.oracle.trace import Trace
from tests.inputs import Inputs, spec
from tests.tolerances import assert_close

Q_LEN, KV_LEN = 4, 6

CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("gqa", {}),
    "RoPE and causal": ("gqa", {"position": ph.Rotary(), "pattern": ph.Causal()}),
    "dynamic NTK": ("gqa", {"position": ph.Rotary(scaling=ph.DynamicNTKScaling(factor=2.0, original_max_seq_len=3))}),
    "softcap and ALiBi": ("mqa", {"weighting": ph.Softmax(softcap=2.0), "position": ph.Alibi()}),
    "sink and T5": (
        "mha",
        {"weighting": ph.Softmax(sink=True), "position": ph.RelativeBias.t5(num_buckets=8, max_distance=6)},
    ),
    "Shaw": ("mha", {"position": ph.RelativeBias.shaw(max_distance=3)}),
    "random links": ("mha", {"pattern": ph.RandomLinks(per_query=2, seed=0)}),
    "nothing seen": ("mha", {"pattern": ph.Links(table=(((0,), (), (2, 5)),))}),
    "latent": ("mla", {"pattern": ph.Causal(), "position": ph.Rotary()}),
    "linear": ("gqa", {"weighting": ph.Linear(), "pattern": ph.Causal()}),
    "linear with RoPE": ("gqa", {"weighting": ph.Linear(), "position": ph.Rotary()}),
    "paper": ("gqa", {"weighting": ph.Differential()}),
    "diffllama": ("gqa", {"weighting": ph.Differential(form="diffllama"), "position": ph.Rotary()}),
    "clipped": ("gqa", {"weighting": ph.Differential(form="clipped"), "pattern": ph.Causal()}),
}


def drawn(name: str) -> Inputs:
    storage, choices = CHOICES[name]
    return Inputs.draw(spec(storage, **choices), 0, batch=1, q_len=Q_LEN, kv_len=KV_LEN)


def traced(inputs: Inputs, head: int, index: int, **options: Any) -> Trace:
    tensors = dict(inputs.learned)
    query, key, value = (tensors.pop(name, None) for name in ("query", "key", "value"))
    return trace(query, key, value, inputs.spec, head=head, index=index, params=tensors, **options)


def stages(found: Trace, index: int = 0) -> dict[str, Any]:
    """Return a map's stages, and those after the maps, by name."""
    return {stage.name: stage.values for stage in found.stages if stage.map in (0, index)}


@pytest.mark.parametrize("name", CHOICES)
def test_weights_and_output_are_attends(name: str) -> None:
    inputs = drawn(name)
    output, weights = inputs.oracle(return_weights=True)
    for head in range(inputs.spec.num_heads):
        for index in range(Q_LEN):
            found = traced(inputs, head, index)
            assert_close(stages(found)["weights"][0], weights[0, head, index], "float64")
            assert_close(found.output, output[0, head, index], "float64")
            assert found.stages[-1].name == "output"
            assert found.tiles == []


def test_positions_are_those_given() -> None:
    inputs = drawn("RoPE and causal")
    q_pos, k_pos = np.array([3, 1, 0, 9]), np.arange(KV_LEN)[::-1]
    output = inputs.oracle(query_positions=q_pos, key_positions=k_pos)
    for index in range(Q_LEN):
        assert_close(traced(inputs, 1, index, positions=(q_pos, k_pos)).output, output[0, 1, index], "float64")


def test_a_head_with_softmax() -> None:
    found = stages(traced(drawn("softcap and ALiBi"), 1, 2))
    assert list(found) == [
        *("allowed", "query", "keys", "products", "scaled", "capped", "bias", "biased"),
        *("masked", "exponentials", "sum", "softmax", "weights", "values", "output"),
    ]
    products = found["query"] @ found["keys"][0].T
    assert_close(found["products"], products, "float64")
    assert_close(found["scaled"], products / np.sqrt(8), "float64")
    assert_close(found["capped"], 2 * np.tanh(found["scaled"] / 2), "float64")
    distances = np.abs(np.arange(KV_LEN) - 4)  # the third of four queries, of which the last is at the last key
    slope = ph.Alibi().head_slopes(4)[1]
    assert_close(found["bias"][0], -slope * distances, "float64")
    assert_close(found["biased"], found["capped"] + found["bias"], "float64")
    assert_close(found["exponentials"], np.exp(found["biased"] - found["biased"].max()), "float64")
    assert_close(found["weights"], found["exponentials"] / found["sum"], "float64")
    assert_close(found["output"], found["weights"] @ found["values"][0], "float64")


def test_a_mask_strikes_out_scores() -> None:
    found = stages(traced(drawn("RoPE and causal"), 0, 1))
    assert found["allowed"].tolist() == [[True] * 4 + [False] * 2]
    assert np.isneginf(found["masked"][0, 4:]).all()
    np.testing.assert_array_equal(found["masked"][0, :4], found["scaled"][0, :4])
    assert not np.allclose(found["rotated query"], found["query"])
    assert_close(found["products"], found["rotated query"] @ found["rotated keys"][0].T, "float64")


def test_shaws_vectors_enter_the_keys() -> None:
    inputs = drawn("Shaw")
    found = stages(traced(inputs, 0, 3))
    vectors = inputs.learned["relative_keys"][np.clip(np.arange(KV_LEN) - 5, -3, 3) + 3]
    assert_close(found["relative keys"][0], found["keys"][0] + vectors, "float64")


def test_two_maps_and_their_difference() -> None:
    inputs = drawn("clipped")
    found = traced(inputs, 2, 3)
    first, second = (stage.values for stage in found.stages if stage.name == "softmax")
    late = stages(found)
    λ = inputs.spec.weighting.initial_lambda
    assert late["lambda"].tolist() == [[pytest.approx(λ)]]
    assert_close(late["difference"], first - λ * second, "float64")
    assert_close(late["clipped"], np.maximum(late["difference"], 0), "float64")
    assert_close(late["weights"], late["clipped"] / late["clipped"].sum(), "float64")


def test_the_papers_form_norms_the_output() -> None:
    inputs = drawn("paper")
    late = stages(traced(inputs, 0, 0))
    assert_close(late["weights"], late["difference"], "float64")
    assert_close(late["mixed"], late["weights"] @ late["values"][0], "float64")
    normed = late["mixed"] / np.sqrt((late["mixed"] ** 2).mean() + 1e-5)
    factor = 1 - inputs.spec.weighting.initial_lambda
    assert_close(late["output"], factor * normed * inputs.learned["sub_norm"], "float64")


def test_features_and_their_sum() -> None:
    found = stages(traced(drawn("linear with RoPE"), 1, 0))
    assert_close(found["feature products"], found["query features"] @ found["key features"][0].T, "float64")
    assert_close(found["sum"], found["feature products"].sum(keepdims=True), "float64")
    assert_close(found["products"], found["rotated query"] @ found["rotated keys"][0].T, "float64")
    assert_close(found["weights"], found["products"] / found["sum"], "float64")


@pytest.mark.parametrize("name", ["plain", "RoPE and causal", "sink and T5", "nothing seen", "latent"])
@pytest.mark.parametrize("tile", [1, 4, 9])
def test_tiles(name: str, tile: int) -> None:
    inputs = drawn(name)
    tensors = dict(inputs.learned)
    query, key, value = (tensors.pop(part, None) for part in ("query", "key", "value"))
    whole = attend_tiled(query, key, value, inputs.spec, tile=tile, params=tensors)
    for index in range(Q_LEN):
        found = traced(inputs, 1, index, tile=tile)
        assert_close(found.output, whole[0, 1, index], "float64")
        assert [one.keys.start for one in found.tiles] == list(range(0, KV_LEN, tile))
        assert found.tiles[-1].keys.stop == KV_LEN
        scores = stages(found)["masked"][0]
        for one in found.tiles:
            highest = scores[: one.keys.stop].max()
            if "sink" not in name and np.isfinite(highest):
                assert one.maximum[0, 0] == pytest.approx(highest)
                assert one.total[0, 0] == pytest.approx(np.exp(scores[: one.keys.stop] - highest).sum())
                assert_close(one.exponentials[0], np.exp(scores[one.keys] - highest), "float64")


def test_tiles_need_a_softmax() -> None:
    with pytest.raises(ph.UnsupportedError, match="tiles with an online softmax need softmax weights"):
        traced(drawn("linear"), 0, 0, tile=2)


def test_what_does_not_fit_is_refused() -> None:
    inputs = drawn("sink and T5")
    query, key, value = (inputs.learned[name] for name in ("query", "key", "value"))
    with pytest.raises(ph.ShapeError, match="params lacks 'bias_table'"):
        trace(query, key, value, inputs.spec, head=0, index=0)
