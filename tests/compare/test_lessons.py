"""The six things that the shared example teaches, and what it says of "mat"."""

import dataclasses

import numpy as np
import pytest

import polyhead as ph
from polyhead.catalog import TEXTBOOK
from polyhead.compare import Row, Table

REACHES_ALL = {"scaled-dot-product", "mha", "cross", "mqa", "gqa", "relative-bias", "rope", "alibi", "linear"}
REACHES_ALL |= {"flash", "differential", "mla"}
"""Mechanisms whose pattern lets cat see all five tokens."""

SAT, ON = 2, 3


@pytest.fixture
def cat() -> Table:
    return ph.AttentionComparison().table("cat")


def largest(row: Row) -> float:
    return float(row.weights.max())


# --- 1 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_flash_equals_standard_to_rounding(engine: str) -> None:
    error = ph.AttentionComparison(engine=engine).flash_error()
    assert error < 4 * np.finfo(np.float64).eps


def test_flash_is_computed_in_tiles_and_not_copied_from_standard() -> None:
    """On five tokens the two may round alike; on more they cannot everywhere, and still agree."""
    comparison = ph.AttentionComparison(*np.random.default_rng(0).normal(size=(3, 40, 8)))
    assert 0 < comparison.flash_error() < 1e-14


# --- 2 --------------------------------------------------------------------------------------------


def test_causal_changes_cat_most_of_what_leaves_values_as_they_are(cat: Table) -> None:
    distances = {row.name: row.distance for row in cat if row.name != "mla"}
    assert max(distances, key=distances.__getitem__) == "causal"
    assert distances["causal"] == pytest.approx(0.500, abs=0.0005)
    assert cat["causal"].output[2:].tolist() == [0.0, 0.0]


def test_mla_moves_cat_further_than_causal_for_it_changes_the_values_too(cat: Table) -> None:
    assert cat["mla"].distance == pytest.approx(0.707, abs=0.0005)
    assert max(cat, key=lambda row: row.distance).name == "mla"


# --- 3 --------------------------------------------------------------------------------------------


def test_dim_3_is_zero_just_where_cat_has_no_weight_on_on(cat: Table) -> None:
    blind = {row.number for row in cat if row.weights[ON] == 0}
    assert blind == {3, 11, 12, 14}
    assert {row.number for row in cat if row.output[3] == 0} == blind


def test_dim_3_is_the_weight_on_on_where_one_head_reads_the_values_as_they_are(cat: Table) -> None:
    single = [row for row in cat if row.number not in {2, 5, 6, 15}]
    for row in single:
        assert row.output[3] == pytest.approx(row.weights[ON], abs=1e-15), row.name
    assert len(single) == 11


def test_dim_3_of_mqa_is_its_second_heads_weight_on_cat() -> None:
    weights = ph.AttentionComparison().result("mqa").weights
    assert ph.AttentionComparison().run("mqa", "cat").output[3] == pytest.approx(weights[1, 1, 1], abs=1e-15)


# --- 4 --------------------------------------------------------------------------------------------


def test_differential_is_the_sharpest_of_what_reaches_all_five(cat: Table) -> None:
    rows = [row for row in cat if row.name in REACHES_ALL]
    assert len(rows) == 12
    assert max(rows, key=largest).name == "differential"


def test_differential_favours_sat_where_standard_favours_the(cat: Table) -> None:
    standard, differential = cat["scaled-dot-product"], cat["differential"]
    assert differential.top == ("sat", pytest.approx(0.542, abs=0.0005))
    assert standard.top == ("The", pytest.approx(0.403, abs=0.0005))
    assert standard.weights[SAT] == pytest.approx(0.244, abs=0.0005)
    assert largest(differential) / largest(standard) == pytest.approx(1.35, abs=0.005)


def test_it_is_rescaling_that_makes_differential_sharp() -> None:
    """The paper's form is the same difference, neither clipped nor rescaled: its λ vectors of 0 leave λ_init."""
    comparison = ph.AttentionComparison()
    clipped = ph.mechanism("differential").spec
    paper = ph.AttentionSpec(storage=clipped.storage, weighting=ph.Differential(form="paper", lambda_init=0.5))
    zeros = {name: np.zeros(shape) for name, shape in paper.parameter_shapes().items()}
    difference = comparison.add("difference", paper, zeros).run("difference", "cat").weights
    assert difference.max() == pytest.approx(0.300, abs=0.0005)
    assert difference.sum() == pytest.approx(0.5, abs=1e-12)
    assert difference.max() < largest(comparison.run("scaled-dot-product", "cat"))
    as_a_setting = ph.AttentionComparison(settings=dataclasses.replace(TEXTBOOK, differential_form="paper"))
    np.testing.assert_array_equal(as_a_setting.run("differential", "cat").weights, difference)
    kept = np.maximum(difference, 0)
    np.testing.assert_allclose(comparison.run("differential", "cat").weights, kept / kept.sum(), atol=1e-12)


# --- 5 --------------------------------------------------------------------------------------------


def test_linear_is_the_flattest(cat: Table) -> None:
    entropies = {row.name: row.entropy for row in cat}
    assert None not in entropies.values()
    assert max(entropies, key=lambda name: entropies[name] or 0) == "linear"
    assert entropies["linear"] == pytest.approx(1.604, abs=0.0005)
    assert min(cat, key=largest).name == "linear"
    assert largest(cat["linear"]) == pytest.approx(0.233, abs=0.0005)


def test_linears_outputs_lie_close_together(cat: Table) -> None:
    output = cat["linear"].output
    assert 0.17 < output.min() < output.max() < 0.42


# --- 6 --------------------------------------------------------------------------------------------


def test_mlas_output_is_mirrored_since_keys_and_values_unfold_alike(cat: Table) -> None:
    output = cat["mla"].output
    assert output[:2] == pytest.approx(output[2:], abs=1e-15)
    params = ph.AttentionComparison().result("mla").fitted.params
    np.testing.assert_array_equal(params["w_uk"], params["w_uv"])


def test_separate_up_projections_break_the_mirror() -> None:
    comparison = ph.AttentionComparison()
    spec, params = ph.mechanism("mla").spec, dict(comparison.result("mla").fitted.params)
    same = comparison.add("shared", spec, params).run("shared", "cat").output
    np.testing.assert_array_equal(same, comparison.run("mla", "cat").output)
    separate = params | {"w_uv": np.array([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, -1.0]]])}
    output = comparison.add("separate", spec, separate).run("separate", "cat").output
    assert abs(output[0] - output[2]) > 0.05
    assert abs(output[1] - output[3]) > 0.05


# --- and "mat" ------------------------------------------------------------------------------------


def test_the_last_token_is_the_same_under_causal_and_standard() -> None:
    mat = ph.AttentionComparison().table("mat")
    np.testing.assert_array_equal(mat["causal"].weights, mat["scaled-dot-product"].weights)
    np.testing.assert_array_equal(mat["causal"].output, mat["scaled-dot-product"].output)


@pytest.mark.parametrize("token", ["The", "cat", "sat", "on"])
def test_every_other_token_is_not(token: str) -> None:
    table = ph.AttentionComparison().table(token)
    assert np.abs(table["causal"].weights - table["scaled-dot-product"].weights).max() > 0.05
