"""What a notebook keeps without trust: a picture that holds its own data, and a table; and that texts stay texts."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.errors import MissingExtraError, ShapeError, SpecError, UnsupportedError
from polyhead.page import Answer
from polyhead.page.notebook import NUMBER, bundle, picture, table
from tests.frames import Cells, taken_apart
from tests.page.test_page import NASTY


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


@pytest.mark.parametrize("text", NASTY)
def test_texts_stay_texts(text: str) -> None:
    still = table([text, "b"], [[text, text], ["", "x"]], text) + picture(figure, text)
    if "\ud800" in text or "\x00" in text:  # no HTML has them, and no parser gives them back
        return
    cells = Cells(still)
    assert cells.tags == {"table", "caption", "tr", "th", "td", "img"}
    assert cells.attributes == {"style", "alt", "src"}
    assert cells.rows == [[text, "b"], [text, text], ["", "x"]]


def test_a_table_of_numbers_stands_to_the_right() -> None:
    assert "text-align:left" in table(["a"], [["1"]])
    assert "text-align:right" in table(["a"], [["1"]], cell=NUMBER)


@pytest.mark.parametrize("error", [MissingExtraError, ShapeError, UnsupportedError])
def test_there_is_no_picture_of_what_cannot_be_drawn(error: type[Exception]) -> None:
    def draw() -> Any:
        raise error("no")

    assert picture(draw, "nothing") == ""


def test_what_is_broken_is_an_error() -> None:
    def draw() -> Any:
        raise SpecError("broken")

    with pytest.raises(SpecError, match="broken"):
        picture(draw, "nothing")


def test_a_bundle_is_a_text_and_a_still_part_before_the_page() -> None:
    answer = Answer(path="plan", body={"model": "x"}, content=[1])
    found = bundle("in words", picture(figure, "a figure") + table(["a"], [["1"]]), {"screen": "plan"}, [answer])
    assert found["text/plain"] == "in words"
    cells, held = taken_apart(found)
    assert (len(cells.images), cells.rows) == (1, [["a"], ["1"]])
    assert held["state"] == {"screen": "plan"}
    assert held["answers"] == [{"path": "plan", "body": {"model": "x"}, "json": [1]}]
