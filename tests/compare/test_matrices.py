"""The binary answer, read back by the library whose layout it has."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load

import polyhead as ph
from polyhead.compare.differences import difference
from polyhead.compare.matrices import kind_of, matrices, safetensors
from tests.compare.arrays import draw, grouped, heads, inputs, latent

ONE = draw((5, 4), (5, 4), (5, 4))


def about(data: bytes, path: Any) -> dict[str, Any]:
    """Return the metadata as the safetensors library reads it."""
    file = path / "answer.safetensors"
    file.write_bytes(data)
    with safe_open(file, "np") as opened:
        read: dict[str, Any] = json.loads(opened.metadata()["polyhead"])
        return read


def comparisons() -> dict[str, ph.AttentionComparison]:
    return {
        "example": ph.AttentionComparison(),
        "one head": ph.AttentionComparison(*ONE),
        "a head of several": ph.AttentionComparison(*heads(), head=2, cross_query=draw((4, 6, 8), seed=1)[0]),
        "rotary and causal": ph.AttentionComparison.from_inputs(inputs(ph.Rotary(), ph.Causal()), title="own"),
        "one token": ph.AttentionComparison(*(array[:1] for array in ONE)),
    }


@pytest.mark.parametrize("name", comparisons())
def test_every_number_is_the_comparisons_bit_for_bit(name: str) -> None:
    comparison = comparisons()[name]
    tensors = load(matrices(comparison))
    rows = [row.name for row in comparison.table()]
    assert set(tensors) == {f"{row}/{part}" for row in rows for part in ("weights", "output", "distance", "equal")}
    for position in range(len(comparison.tokens)):
        table = comparison.table(position)
        for row in table:
            assert tensors[f"{row.name}/weights"][position].tobytes() == row.weights.tobytes(), row.name
            assert tensors[f"{row.name}/output"][position].tobytes() == row.output.tobytes(), row.name
            assert tensors[f"{row.name}/distance"][position] == row.distance, row.name
            differs = difference(table["scaled-dot-product"], row).differ
            assert tensors[f"{row.name}/equal"][position] == (not differs), row.name


def test_what_it_says_of_the_example(tmp_path: Any) -> None:
    comparison = ph.AttentionComparison()
    read = about(matrices(comparison), tmp_path)
    rows = read.pop("rows")
    assert read == {
        "schema": 1,
        "title": "shared example",
        "tokens": ["The", "cat", "sat", "on", "mat"],
        "token": 1,
        "head": 0,
        "num_heads": 1,
        "layer": None,
        "num_layers": None,
        "is_model": False,
        "base_repr": repr(comparison.inputs.base),
        "flash_error": comparison.flash_error(),
        "absent": {},
        "absent_controls": {},
    }
    table = {row.name: row for row in comparison.table()}
    assert [row["name"] for row in rows] == list(table)
    for row in rows:
        theirs = table[row["name"]]
        assert ph.AttentionSpec.from_json(json.dumps({"schema": 1, **row["spec"]})) == theirs.spec
        assert row["spec_repr"] == repr(theirs.spec)
        assert (row["number"], row["title"], row["changes"]) == (theirs.number, theirs.title, theirs.changes)
        assert (row["is_own"], row["note"], tuple(row["key_tokens"])) == (False, theirs.note, theirs.key_tokens)
    kinds = {row["name"]: row["kind"] for row in rows if row["kind"] != "softmax"}
    assert kinds == {"linear": "equivalent", "differential": "effective"}
    reasons = {row["name"]: row["equal_reason"] for row in rows if row["equal_reason"]}
    assert reasons == {
        "causal": "both patterns let this token see the same keys",  # the last one
        "bigbird": "both patterns let this token see the same keys",  # the first one, which is global
        "flash": "the same function, computed in tiles",
    }


def test_a_models_layer(tmp_path: Any) -> None:
    given = inputs(ph.Rotary(), ph.Causal())
    given = dataclasses.replace(given, own=given.base, layer=3, num_layers=12)
    read = about(matrices(ph.AttentionComparison.from_inputs(given, title="tiny, layer 3", head=-1)), tmp_path)
    assert (read["layer"], read["num_layers"], read["is_model"]) == (3, 12, True)
    assert (read["head"], read["num_heads"], read["token"]) == (3, 4, 5)
    assert {row["name"]: row["note"] for row in read["rows"] if row["is_own"]} == {
        name: "what the model has" if name in {"causal", "gqa", "rope"} else ""
        for name in ("scaled-dot-product", "causal", "gqa", "rope", "flash")
    }


def test_some_and_ones_own(tmp_path: Any) -> None:
    comparison = ph.AttentionComparison().add("my/own", grouped(pattern=ph.Causal()))
    data = matrices(comparison, names=["GQA", "my/own"])
    assert {name.rpartition("/")[0] for name in load(data)} == {"gqa", "my/own"}
    read = about(data, tmp_path)
    assert [row["name"] for row in read["rows"]] == ["gqa", "my/own"]
    assert (read["rows"][1]["controls"], read["flash_error"]) == ([], None)
    with pytest.raises(ph.UnknownNameError, match="no mechanism is called 'gqaa'"):
        matrices(comparison, names=["gqaa"])


def test_nothing_is_an_answer_too(tmp_path: Any) -> None:
    data = matrices(ph.AttentionComparison(), names=[])
    assert load(data) == {}
    assert about(data, tmp_path)["rows"] == []


def test_what_the_input_cannot_take_is_absent_with_the_reason_and_its_knobs(tmp_path: Any) -> None:
    settings = ph.Settings(num_groups=4)
    read = about(matrices(ph.AttentionComparison(*ONE, settings=settings), names=["gqa", "cross", "mha"]), tmp_path)
    assert [row["name"] for row in read["rows"]] == ["mha"]
    assert read["absent"]["gqa"] == "num_kv_heads=4 does not divide num_heads=2; use 1 or 2"
    assert read["absent"]["cross"].startswith("cross-attention needs a second sequence")
    knobs = {name: [control["name"] for control in found] for name, found in read["absent_controls"].items()}
    assert knobs == {"gqa": ["num_groups", "shared_head", "num_heads"], "cross": []}


@pytest.mark.parametrize("name", ["é", "ab", "{}", "\u2028"])
def test_wide_numbers_begin_at_a_multiple_of_eight(name: str) -> None:
    array = np.arange(3.0)
    data = safetensors({"polyhead": name}, {f"{name}/a": array, f"{name}/b": np.ones(3, dtype=np.uint8)})
    assert int.from_bytes(data[:8], "little") % 8 == 0
    read = load(data)
    np.testing.assert_array_equal(read[f"{name}/a"], array)
    assert read[f"{name}/b"].tolist() == [1, 1, 1]


def test_an_array_that_lies_otherwise_in_memory_is_written_row_by_row() -> None:
    array = np.arange(6.0).reshape(2, 3).T.astype(">f8")
    np.testing.assert_array_equal(load(safetensors({}, {"a": array}))["a"], array)


def test_kinds() -> None:
    assert kind_of(grouped(weighting=ph.Linear())) == "equivalent"
    assert kind_of(latent(weighting=ph.Differential())) == "effective"
    assert kind_of(grouped(weighting=ph.Softmax(sink=True))) == "softmax"
