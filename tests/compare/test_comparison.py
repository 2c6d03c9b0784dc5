"""The class: which token, which mechanism, which head; combinations of one's own; and what it refuses."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.compare.inputs import Cross
from polyhead.errors import ShapeError, SpecError, UnknownNameError, UnsupportedError
from tests.compare.arrays import draw, grouped, heads, inputs, latent

ENGINES = ("numpy", "torch")
ONE = draw((5, 4), (5, 4), (5, 4))
MANY = heads()


@pytest.fixture
def example() -> ph.AttentionComparison:
    return ph.AttentionComparison()


# --- tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "position"),
    [("cat", 1), ("The", 0), (0, 0), (4, 4), (-1, 4), (-5, 0), ("2", 2), ("-1", 4), (np.int64(3), 3)],
)
def test_a_token_is_its_text_or_its_position(example: ph.AttentionComparison, token: Any, position: int) -> None:
    assert example.position(token) == position
    assert example.table(token).token == example.tokens[position]


def test_the_token_by_default(example: ph.AttentionComparison) -> None:
    assert example.table().token == example.run("gqa").key_tokens[1] == "cat"
    own = ph.AttentionComparison(*ONE, tokens=["cat", "b", "c", "d", "e"])
    assert (own.table().token, own.table().position) == ("e", 4)


def test_a_token_may_be_named_without_the_tokenizers_mark_of_a_space() -> None:
    comparison = ph.AttentionComparison(*ONE, tokens=["Ġcat", "cat", "▁sat", " on", "3"])
    assert [comparison.position(token) for token in ("cat", "sat", "on", "Ġcat", "3")] == [1, 2, 3, 0, 4]


def test_a_token_that_stands_at_several_positions_is_ambiguous() -> None:
    comparison = ph.AttentionComparison(*ONE, tokens=["the", "cat", "the", "Ġdog", "▁dog"])
    with pytest.raises(UnknownNameError, match="'the' stands at positions 0, 2; give one of them"):
        comparison.position("the")
    with pytest.raises(UnknownNameError, match="'dog' stands at positions 3, 4"):
        comparison.table("dog")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("mta", "no token is called 'mta'; did you mean mat"),
        ("zebra", "no token is called 'zebra'; use one of The, cat, sat, on, mat"),
        (5, "there is no token 5; positions run from 0 to 4"),
        ("-6", "there is no token -6; positions run from 0 to 4"),
    ],
)
def test_a_token_that_is_not_there(example: ph.AttentionComparison, token: Any, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        example.run("gqa", token)


def test_a_position_is_a_whole_number(example: ph.AttentionComparison) -> None:
    with pytest.raises(TypeError, match="float"):
        example.position(1.0)  # type: ignore[arg-type]


# --- mechanisms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [6, "6", "gqa", "GQA", "grouped-query", "Grouped-query attention"])
def test_a_mechanism_is_its_number_its_name_or_an_alias(example: ph.AttentionComparison, name: Any) -> None:
    assert example.run(name).name == example.table()["gqa"].name == "gqa"
    assert example.result(name) is example.result("gqa")


def test_a_mechanism_that_is_not_there(example: ph.AttentionComparison) -> None:
    with pytest.raises(UnknownNameError, match="no mechanism is called 'gqaa'; did you mean gqa"):
        example.run("gqaa")


def test_a_row_says_what_ran(example: ph.AttentionComparison) -> None:
    row = example.run("alibi", "on")
    assert (row.number, row.title, row.changes) == (9, "Attention with linear biases", "position")
    assert (row.spec, row.is_own, row.note) == (ph.mechanism("alibi").spec, False, "")
    assert row.distance == pytest.approx(np.linalg.norm(row.output - example.run(1, "on").output))
    np.testing.assert_array_equal(row.weights, example.result("alibi").weights[0, 3])


def test_weights_of_a_split_head_are_the_mean_of_its_pieces(example: ph.AttentionComparison) -> None:
    np.testing.assert_allclose(example.run("mha").weights, example.result("mha").weights[:, 1].mean(axis=0))


# --- one's own arrays -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("given", [ONE, MANY], ids=["one head", "several"])
def test_all_but_cross_run_on_ones_own_arrays(engine: str, given: list[Any]) -> None:
    table = ph.AttentionComparison(*given, engine=engine).table()
    assert [row.number for row in table] == [n for n in range(1, 16) if n != 4]
    assert table.absent == {"cross": "cross-attention needs a second sequence: give cross_query, or a second text"}
    assert table.title == ("own arrays" if given is ONE else "own arrays, head 0")


@pytest.mark.parametrize("given", [ONE, MANY], ids=["one head", "several"])
def test_cross_queries_meet_the_same_keys(given: list[Any]) -> None:
    query = draw(given[0].shape, seed=1)[0]
    comparison = ph.AttentionComparison(*given, cross_query=query)
    other = ph.AttentionComparison(query, *given[1:])
    np.testing.assert_array_equal(comparison.result("cross").output, other.result(1).output)
    assert len(comparison.table()) == 15


def test_mqa_takes_the_mean_of_the_heads() -> None:
    halves = [np.stack([array[:, :2], array[:, 2:]]) for array in ONE]
    shared = [array.mean(axis=0, keepdims=True) for array in halves[1:]]
    expected = ph.AttentionComparison(halves[0], *shared).result(1).output
    np.testing.assert_allclose(ph.AttentionComparison(*ONE).result("mqa").output, expected, atol=1e-15)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_head_is_computed_and_one_is_shown(engine: str) -> None:
    every = [ph.AttentionComparison(*MANY, engine=engine, head=head).run("alibi") for head in range(4)]
    output, weights = ph.AttentionComparison(*MANY, engine=engine).result("alibi")[1:]
    for head, row in enumerate(every):
        np.testing.assert_array_equal(row.output, output[head, -1])
        np.testing.assert_array_equal(row.weights, weights[head, -1])
    np.testing.assert_array_equal(
        ph.AttentionComparison(*MANY, engine=engine, head=-1).run("alibi").output, output[3, -1]
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_one_token_attends_to_itself(engine: str) -> None:
    comparison = ph.AttentionComparison(*(array[:1] for array in ONE), engine=engine)
    table = comparison.table()
    assert len(table) == 14
    for row in table:
        assert row.weights == pytest.approx([1.0]), row.name
        if row.name != "mqa":  # whose two halves share the mean of the values
            assert row.output == pytest.approx(ONE[2][0]), row.name
    assert not any(d.differ for d in comparison.differences() if "mqa" not in (d.first, d.second))


def test_a_width_that_does_not_split_leaves_three_out_with_the_reason() -> None:
    table = ph.AttentionComparison(*ONE, num_heads=3).table()
    assert set(table.absent) == {"mha", "cross", "mqa", "gqa"}
    assert (
        table.absent["mha"] == "num_heads=3 does not divide the widths 4 (queries and keys) and 4 (values); "
        "give num_heads that does"
    )


def test_number_of_heads() -> None:
    assert ph.AttentionComparison(*ONE, num_heads=4).run("mha").spec == grouped(4, 1)
    with pytest.raises(ShapeError, match="num_heads=0 is no number of heads; give 1 or more"):
        ph.AttentionComparison(*ONE, num_heads=0)


def test_settings_change_the_mechanisms() -> None:
    settings = ph.Settings(window=ph.SlidingWindow.causal(1))
    row = ph.AttentionComparison(*ONE, settings=settings).run("sliding-window", 2)
    assert row.weights.tolist() == [0, 0, 1, 0, 0]


def test_part_of_an_input_is_none() -> None:
    with pytest.raises(ShapeError, match="give query, key and value together, or none of them for the shared example"):
        ph.AttentionComparison(ONE[0], ONE[1])
    with pytest.raises(ShapeError, match="tokens and cross_query go with query, key and value; the shared example"):
        ph.AttentionComparison(tokens=["a"])


@pytest.mark.parametrize(
    ("given", "head", "message"),
    [((), 1, "head=1 does not exist; the input has one head, 0"), (MANY, -5, "head=-5 .* has heads 0 to 3")],
)
def test_a_head_that_is_not_there(given: Any, head: int, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        ph.AttentionComparison(*given, head=head)


def test_too_many_tokens() -> None:
    with pytest.raises(ShapeError, match=r"10000 tokens .* give at most 8192 tokens"):
        ph.AttentionComparison(*np.zeros((3, 10_000, 1)))


@pytest.mark.parametrize("given", [ONE, MANY], ids=["one head", "several"])
def test_a_view_is_every_tokens_row(given: list[Any]) -> None:
    comparison = ph.AttentionComparison(*given, head=len(given[0]) - 1 if given[0].ndim == 3 else 0)
    for name in ("gqa", 14, "mla"):
        view = comparison.view(name)
        for position in range(len(comparison.tokens)):
            row = comparison.run(name, position)
            np.testing.assert_array_equal(view.output[position], row.output)
            np.testing.assert_array_equal(view.weights[position], row.weights)
            assert (view.name, view.spec, view.note) == (row.name, row.spec, row.note)


def test_inputs_that_are_at_hand_already() -> None:
    given = inputs(ph.Rotary(), ph.Causal())
    comparison = ph.AttentionComparison.from_inputs(given, title="read once", engine="torch", head=-1)
    assert (comparison.inputs, comparison.title) == (given, "read once")
    assert (comparison.settings, comparison.engine, comparison.head) == (ph.Settings(), "torch", 3)
    assert comparison.table().title == "read once, head 3"
    with pytest.raises(UnknownNameError, match="head=4 does not exist; the input has heads 0 to 3"):
        ph.AttentionComparison.from_inputs(given, title="", head=4)


def test_names_are_what_can_be_asked_for(example: ph.AttentionComparison) -> None:
    example.add("mine", grouped())
    assert example.names == tuple(row.name for row in example.table())
    assert [example.known(name) for name in ("GQA", 13, "mine")] == ["gqa", "flash", "mine"]


# --- combinations of one's own --------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_added_stands_below_the_fifteen(engine: str) -> None:
    comparison = ph.AttentionComparison(engine=engine)
    assert comparison.add("mine", grouped(pattern=ph.Causal())) is comparison
    row = comparison.table()["mine"]
    assert len(comparison.table()) == 16
    assert (row.number, row.title, row.changes) == (None, "mine", "combination")
    np.testing.assert_array_equal(row.output, comparison.run("causal").output)
    assert {"mine"} == {d.second for d in comparison.differences() if d.first == "mla"}


@pytest.mark.parametrize("name", ["gqa", "mine"])
def test_a_name_is_given_once(example: ph.AttentionComparison, name: str) -> None:
    example.add("mine", grouped())
    with pytest.raises(SpecError, match=f"{name!r} is taken; give your combination another name"):
        example.add(name, grouped())


def test_what_cannot_run_is_not_added(example: ph.AttentionComparison) -> None:
    with pytest.raises(
        ShapeError, match=r"query 1 heads of width 4, and .* needs 1 of width 8; change the spec's storage"
    ):
        example.add("mine", grouped(1, 8))
    with pytest.raises(ShapeError, match=r"params\['bias_table'\] has shape \[3\]; the spec needs \[32, 1\]"):
        example.add("mine", grouped(position=ph.RelativeBias.t5()), {"bias_table": [0, 0, 0]})
    assert "mine" not in {row.name for row in example.table()}
    example.add("mine", grouped())


@pytest.mark.parametrize(
    ("choice", "missing", "shape"),
    [
        ({"position": ph.RelativeBias.t5()}, "bias_table", r"\[32, 1\]"),
        ({"position": ph.RelativeBias.shaw(max_distance=2)}, "relative_keys", r"\[5, 4\]"),
        ({"weighting": ph.Softmax(sink=True)}, "sinks", r"\[1\]"),
    ],
)
def test_what_is_learned_is_not_made_up(example: ph.AttentionComparison, choice: Any, missing: str, shape: str) -> None:
    with pytest.raises(ShapeError, match=f"'mine' learns {missing!r} of shape {shape}; give params="):
        example.add("mine", grouped(**choice))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_table_of_t5s_biases(engine: str) -> None:
    """Below a distance of 8 T5 has a bucket for each distance, and 16 further on where the key comes later."""
    table = draw((32, 1))[0]
    spec = grouped(position=ph.RelativeBias.t5(), weighting=ph.Softmax(scale=1.0))
    comparison = ph.AttentionComparison(*ONE, engine=engine).add("t5", spec, {"bias_table": table})
    query, key, value = ONE
    for i, _ in enumerate(query):
        score = [query[i] @ key[j] + table[abs(j - i) + 16 * (j > i), 0] for j in range(len(key))]
        weights = np.exp(score) / np.exp(score).sum()
        np.testing.assert_allclose(comparison.run("t5", i).weights, weights, atol=1e-14)
        np.testing.assert_allclose(comparison.run("t5", i).output, weights @ value, atol=1e-14)


def test_the_textbooks_own_parts_stand_in_where_they_fit(example: ph.AttentionComparison) -> None:
    example.add("bias", grouped(position=ph.RelativeBias.clipped(max_distance=4))).add("latent", latent())
    for ours, theirs in {"bias": "relative-bias", "latent": "mla"}.items():
        np.testing.assert_array_equal(example.run(ours).output, example.run(theirs).output)


def test_latents_of_other_shapes_are_an_svd(example: ph.AttentionComparison) -> None:
    example.add("whole", latent(rank=5)).add("split", latent(2, 5, 2, 2))
    for ours, theirs in {"whole": "scaled-dot-product", "split": "mha"}.items():
        np.testing.assert_allclose(example.run(ours).output, example.run(theirs).output, atol=1e-14)
        assert "joint SVD" in example.run(ours).note


# --- whole results --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(), ONE, MANY], ids=["example", "one head", "several"])
def test_engines_agree(given: Any) -> None:
    comparisons = [ph.AttentionComparison(*given, engine=engine) for engine in ENGINES]
    for name in (row.name for row in comparisons[0].table()):
        for ours, theirs in zip(*(comparison.result(name)[1:] for comparison in comparisons), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12, err_msg=name)


def test_differences_are_of_every_pair(example: ph.AttentionComparison) -> None:
    names = [entry.name for entry in ph.mechanisms()]
    assert [(d.first, d.second) for d in example.differences()] == list(itertools.combinations(names, 2))


def test_cross_attention_is_no_models_own_even_where_its_spec_is() -> None:
    """An encoder's own spec is full already, and its keys are still its own text's."""
    given = inputs()
    cross = Cross(given.query, given.key, given.value, given.tokens)
    encoder = ph.AttentionComparison.from_inputs(dataclasses.replace(given, own=given.base, cross=cross), title="")
    assert encoder.run("cross").spec == given.base
    assert [row.number for row in encoder.table() if row.is_own] == [1, 6, 13]


def test_a_result_that_the_input_cannot_take_says_why() -> None:
    with pytest.raises(UnsupportedError, match="needs a second sequence"):
        ph.AttentionComparison(*ONE).result("cross")


# --- a table of some ------------------------------------------------------------------------------


def test_a_table_of_some_runs_no_others() -> None:
    comparison = ph.AttentionComparison()
    table = comparison.table("mat", names=["GQA", 3])
    assert [row.name for row in table] == ["causal", "gqa"]  # in the textbook's order
    assert set(comparison._results) == {"scaled-dot-product", "causal", "gqa"}  # the baseline is what they differ from


def test_what_is_named_and_cannot_run_is_an_error_and_not_left_out() -> None:
    with pytest.raises(ph.UnsupportedError, match="needs a second sequence"):
        ph.AttentionComparison(*ONE).table(names=["cross"])
