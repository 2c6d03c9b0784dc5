"""A token's stages as they are told: they end in what the comparison says, for every mechanism and token."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.compare.inputs import Cross, Inputs
from polyhead.compare.stages import MOST_LISTED, MOST_TILES, stages
from polyhead.compare.words import what_is
from tests.compare.arrays import draw, grouped, heads, inputs

NAMES = [entry.name for entry in ph.mechanisms()]


def with_cross(given: Inputs) -> Inputs:
    query = draw(given.query.shape, seed=2)[0]
    other = tuple(f"u{i}" for i in range(given.key.shape[1]))
    return dataclasses.replace(given, cross=Cross(query, given.key, given.value, other))


def comparisons() -> dict[str, ph.AttentionComparison]:
    own = with_cross(inputs(ph.Rotary(), ph.Causal()))
    return {
        "example": ph.AttentionComparison(),
        "example in torch": ph.AttentionComparison(engine="torch"),
        "rotary and causal": ph.AttentionComparison.from_inputs(own, title="own", head=2),
        "a window and ALiBi": ph.AttentionComparison.from_inputs(
            with_cross(inputs(ph.Alibi(), ph.SlidingWindow.causal(3))), title="own", head=1
        ),
        "paper": ph.AttentionComparison(settings=ph.Settings(differential_form="paper", num_heads=4)),
    }


def told(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["id"]: stage for stage in data["stages"]}


def check(comparison: ph.AttentionComparison, name: str, position: int) -> None:
    row = comparison.run(name, position)
    data = stages(comparison, name, position)
    found = told(data)
    assert data["stages"][-1]["id"] == "output"
    for stage, expected in (("weights", row.weights), ("output", row.output)):
        last = found[stage]["rows"][-1]["values"]
        np.testing.assert_allclose(last, expected, rtol=0, atol=1e-12, err_msg=f"{name} {position} {stage}")
    assert data["key_tokens"] == list(row.key_tokens)
    assert data["note"] == row.note or row.is_own
    json.dumps(data, allow_nan=False)  # a hidden score is None, and not an infinity that JSON lacks


@pytest.mark.parametrize("given", comparisons())
def test_it_ends_in_what_the_comparison_says(given: str) -> None:
    comparison = comparisons()[given]
    for row in comparison.table():
        for position in range(len(comparison.tokens)):
            check(comparison, row.name, position)
    assert len(comparison.table()) >= 14


def test_all_fifteen_are_told_of_the_example_and_of_several_heads() -> None:
    for given in ("example", "rotary and causal"):
        assert [row.name for row in comparisons()[given].table()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_has_its_words_and_its_rows(name: str) -> None:
    for given in ("example", "rotary and causal", "paper"):
        for stage in stages(comparisons()[given], name)["stages"]:
            assert stage["name"]
            assert stage["what"].endswith(".")
            assert stage["rows"]
            for row in stage["rows"]:
                assert row["along"] in {"keys", "width", "number"}
                assert len(row["values"]) == {"keys": 5 if given != "rotary and causal" else 6, "number": 1}.get(
                    row["along"], len(row["values"])
                )


def test_the_example_by_hand() -> None:
    found = told(stages(ph.AttentionComparison(), "scaled-dot-product", "cat"))
    assert list(found) == [
        *("query", "keys", "products", "scaled", "exponentials", "sum", "weights", "values", "output")
    ]
    assert found["query"]["rows"] == [{"label": "", "values": [2, 0, 1, 0], "along": "width"}]
    assert [row["label"] for row in found["keys"]["rows"]] == ["The", "cat", "sat", "on", "mat"]
    assert found["products"]["rows"][0]["values"] == [3, 0, 2, 1, 0.5]
    assert found["scaled"]["rows"][0]["values"] == [1.5, 0, 1, 0.5, 0.25]
    assert found["scaled"]["what"] == "Times 0.5, which is 1/√4: the score."
    assert all(stage["masked"] is None for stage in found.values())


def test_what_a_mask_hides() -> None:
    found = told(stages(ph.AttentionComparison(), "causal", "cat"))
    hidden = [False, False, True, True, True]
    assert found["masked"]["rows"][0]["values"] == [1.5, 0, None, None, None]
    assert found["masked"]["what"] == "What Causal() hides is struck out."
    masked = {name for name, stage in found.items() if stage["masked"]}
    assert masked == {"masked", "exponentials", "weights"}
    assert {tuple(found[name]["masked"]) for name in masked} == {tuple(hidden)}


def test_a_split_head_has_a_row_for_each_piece_and_the_mean() -> None:
    comparison = ph.AttentionComparison()
    for name in ("mha", "mqa", "gqa"):
        found = told(stages(comparison, name, "cat"))
        assert [row["label"] for row in found["products"]["rows"]] == ["head 0", "head 1"]
        assert [row["label"] for row in found["weights"]["rows"]] == ["head 0", "head 1", "mean"]
        assert [row["label"] for row in found["output"]["rows"]] == ["head 0", "head 1", "side by side"]
        assert found["keys"]["rows"][5]["label"] == "head 1: The"
        weights = comparison.result(name).weights[:, 1]
        np.testing.assert_allclose([row["values"] for row in found["weights"]["rows"][:2]], weights, atol=1e-12)


def test_several_heads_show_the_one_that_is_shown() -> None:
    found = told(stages(ph.AttentionComparison(*heads(), head=3), "mha"))
    assert [row["label"] for row in found["weights"]["rows"]] == [""]


def test_differential_has_two_maps() -> None:
    found = told(stages(ph.AttentionComparison(), "differential", "cat"))
    assert list(found)[-7:] == ["softmax", "lambda", "difference", "clipped", "weights", "values", "output"]
    assert [row["label"] for row in found["softmax"]["rows"]] == ["map 1", "map 2"]
    assert [row["label"] for row in found["difference"]["rows"]] == [""]
    assert found["lambda"]["rows"] == [{"label": "", "values": [0.5], "along": "number"}]
    paper = told(stages(comparisons()["paper"], "differential", "cat"))
    assert list(paper)[-6:] == ["softmax", "lambda", "weights", "values", "mixed", "output"]
    assert paper["output"]["what"] == "That over its root mean square, times 1 − λ_init = 0.5."


def test_linear_has_features_and_no_score() -> None:
    found = told(stages(ph.AttentionComparison(), "linear", "cat"))
    assert list(found) == [
        *("query", "keys", "query features", "key features", "feature products", "sum", "weights", "values", "output")
    ]
    turned = told(stages(comparisons()["rotary and causal"], "linear"))
    assert {"rotated query", "products", "seen products"} < set(turned)


def test_a_latent_comes_first() -> None:
    data = stages(ph.AttentionComparison(), "mla", "cat")
    assert [stage["id"] for stage in data["stages"]][:3] == ["latent", "query", "keys"]
    latent = data["stages"][0]["rows"]
    assert [len(row["values"]) for row in latent] == [2] * 5
    assert data["note"] == "latent by the textbook's W_down"


def test_flash_goes_tile_by_tile() -> None:
    data = stages(ph.AttentionComparison(), "flash", "cat")
    assert [stage["name"] for stage in data["stages"]][3:] == [
        *("scaled", "tile 1", "tile 2", "tile 3", "weights", "values", "output")
    ]
    first, _, third = (stage for stage in data["stages"] if stage["id"] == "tile")
    assert first["what"].startswith("The keys The cat: ")
    assert [row["label"] for row in first["rows"]] == [
        *("e^(score − largest)", "largest so far", "sum so far", "output so far")
    ]
    assert first["rows"][0]["values"] == [1.0, pytest.approx(np.exp(-1.5)), None, None, None]
    total, output = third["rows"][2]["values"][0], np.array(third["rows"][3]["values"])
    np.testing.assert_allclose(output / total, data["stages"][-1]["rows"][0]["values"], atol=1e-15)


def test_very_many_tiles_are_not_all_told() -> None:
    length = 2 * MOST_TILES
    comparison = ph.AttentionComparison(*draw(*[(length, 2)] * 3), settings=ph.Settings(tile=1))
    data = stages(comparison, "flash")
    names = [stage["name"] for stage in data["stages"] if stage["id"] in {"tile", "tiles"}]
    assert len(names) == MOST_TILES + 1
    assert names[31:34] == ["tile 32", "64 more tiles", "tile 97"]
    assert "Tiles 33 to 96 go the same way" in next(s["what"] for s in data["stages"] if s["id"] == "tiles")
    check(comparison, "flash", length - 1)


def test_very_many_keys_are_not_listed() -> None:
    length = MOST_LISTED // 8 + 1
    found = told(stages(ph.AttentionComparison(*draw(*[(length, 8)] * 3)), "causal"))
    assert (found["keys"]["rows"], found["values"]["rows"]) == ([], [])
    assert found["keys"]["what"].endswith("They are too many to list.")
    assert len(found["products"]["rows"][0]["values"]) == length


def test_ones_own_combination() -> None:
    spec = grouped(
        weighting=ph.Softmax(scale=1.0, softcap=2.0, sink=True), position=ph.RelativeBias.shaw(max_distance=1)
    )
    params = {"sinks": [0.5], "relative_keys": draw((3, 4))[0], "relative_values": draw((3, 4), seed=1)[0]}
    comparison = ph.AttentionComparison().add("mine", spec, params)
    check(comparison, "mine", 2)
    found = told(stages(comparison, "mine", 2))
    assert "scaled" not in found  # a scale of 1 changes nothing
    assert {"relative keys", "capped"} < set(found)
    assert "sink" in found["sum"]["what"]


def test_what_is_not_there() -> None:
    with pytest.raises(ph.UnknownNameError, match="no mechanism is called 'gqaa'"):
        stages(ph.AttentionComparison(), "gqaa")
    with pytest.raises(ph.UnknownNameError, match="there is no token 5"):
        stages(ph.AttentionComparison(), "gqa", 5)
    with pytest.raises(ph.UnsupportedError, match="needs a second sequence"):
        stages(ph.AttentionComparison(*draw((5, 4), (5, 4), (5, 4))), "cross")


def test_words_follow_the_spec() -> None:
    assert what_is("scaled", grouped(weighting=ph.Softmax(scale=0.3))) == "Times 0.3: the score."
    assert "ALiBi" in what_is("bias", grouped(position=ph.Alibi()))
    assert "distance" in what_is("bias", grouped(position=ph.RelativeBias.t5()))
    assert "log(1 + eˣ)" in what_is("query features", grouped(weighting=ph.Linear(feature_map="softplus")))
