"""A comparison in a notebook: picture, table, and the page with every token's answer."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

import polyhead as ph
from polyhead.compare.matrices import matrices
from polyhead.compare.notebook import ASKED
from polyhead.compare.stages import stages
from tests.compare.arrays import draw, grouped, heads
from tests.frames import Cells, taken_apart, without_matplotlib


def test_the_example() -> None:
    comparison = ph.AttentionComparison().add("<b>mine", grouped(pattern=ph.Causal()))
    found = comparison._repr_mimebundle_()
    assert found["text/plain"] == comparison.table().to_markdown()
    cells, held = taken_apart(found)
    assert len(cells.images) == 1
    assert [row[1] for row in cells.rows[1:]] == [row.name for row in comparison.table()]
    assert held["state"] == {"screen": "compare", "matrix": ASKED}
    first, *others = held["answers"]
    assert (first["path"], first["body"]) == ("matrix", ASKED)
    assert base64.b64decode(first["base64"]) == matrices(comparison)
    asked = [(answer["body"]["mechanism"], answer["body"]["token"]) for answer in others]
    assert asked == [(row.name, position) for row in comparison.table() for position in range(5)]
    assert others[7]["json"] == json.loads(json.dumps(stages(comparison, *asked[7])))


def test_of_many_tokens_one_is_told_step_by_step() -> None:
    _, held = taken_apart(ph.AttentionComparison(*heads(length=9))._repr_mimebundle_())
    assert {answer["body"]["token"] for answer in held["answers"][1:]} == {8}
    _, held = taken_apart(ph.AttentionComparison(*draw(*[(129, 2)] * 3))._repr_mimebundle_())
    assert [answer["path"] for answer in held["answers"]] == ["matrix"]


def test_what_is_too_long_for_a_picture_has_a_table() -> None:
    comparison = ph.AttentionComparison(*np.random.default_rng(0).normal(size=(3, 129, 2)))
    cells, _ = taken_apart(comparison._repr_mimebundle_())
    assert (cells.images, len(cells.rows)) == ([], 15)


def test_what_would_fill_a_notebook_is_left_out_and_says_so() -> None:
    comparison = ph.AttentionComparison(*draw(*[(300, 2)] * 3))
    text = comparison._repr_mimebundle_()["text/html"]
    assert "<iframe" not in text
    assert text.endswith("<p>The page that shows every token is left out: its matrices take 10 MiB.</p>")
    assert Cells(text).rows == Cells(comparison.table().to_html()).rows


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = ph.AttentionComparison()
    with_one = taken_apart(comparison._repr_mimebundle_())
    without_matplotlib(monkeypatch)
    cells, held = taken_apart(comparison._repr_mimebundle_())
    assert (cells.images, cells.rows) == ([], with_one[0].rows)
    assert held == with_one[1]
