"""The picture: what it shows, that its file can be read, and what it refuses."""

from __future__ import annotations

import base64
import dataclasses
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyhead as ph
from polyhead.compare import Table
from polyhead.compare.plot import HUES, check_plot, draw, embedded
from polyhead.errors import MissingExtraError, ShapeError, UnsupportedError
from tests.compare.arrays import draw as numbers, grouped

matplotlib = pytest.importorskip("matplotlib", reason="the picture is drawn by matplotlib")


@pytest.fixture
def cat() -> Table:
    return ph.AttentionComparison().table()


def own(length: int, width: int = 4, **options: Any) -> Table:
    return ph.AttentionComparison(*numbers(*[(length, width)] * 3), **options).table()


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def image(axes: Any) -> Any:
    return np.ma.filled(axes.images[0].get_array(), np.nan)


# --- what it shows --------------------------------------------------------------------------------


def test_weights_on_the_left_and_outputs_on_the_right(cat: Table) -> None:
    left, right = draw(cat).axes[:2]
    weights = np.array([row.weights for row in cat])
    np.testing.assert_array_equal(image(left), np.where(weights == 0, np.nan, weights))
    np.testing.assert_array_equal(image(right), [row.output for row in cat])
    assert labels(left.xaxis) == ["The", "cat", "sat", "on", "mat"]
    assert {f"{x:.2f}" for x in weights[weights > 0]} == {text.get_text() for text in left.texts}


def test_a_row_is_labelled_in_the_hue_of_what_it_changes(cat: Table) -> None:
    axis = draw(cat).axes[0].yaxis
    assert labels(axis) == [f"{row.name}  {row.number}" for row in cat]
    assert [label.get_color() for label in axis.get_ticklabels()] == [HUES[row.changes] for row in cat]


def test_the_models_own_and_what_was_added_are_told_apart(cat: Table) -> None:
    rows = (dataclasses.replace(cat["gqa"], is_own=True), dataclasses.replace(cat["mha"], number=None))
    assert labels(draw(dataclasses.replace(cat, rows=rows)).axes[0].yaxis) == ["gqa (own)  6", "mha  +"]


def test_tokens_of_another_sequence_stand_above(cat: Table) -> None:
    cross = dataclasses.replace(cat["cross"], key_tokens=("Le", "chat"), weights=np.array([0.25, 0.75]))
    left = draw(dataclasses.replace(cat, rows=(cat["mha"], cross))).axes[0]
    [above] = left.child_axes
    assert labels(left.xaxis) == ["The", "cat", "sat", "on", "mat"]
    assert labels(above.xaxis) == ["Le", "chat"]
    assert above.get_xlabel() == "tokens of cross"
    assert np.isnan(image(left)[1, 2:]).all()


def test_many_columns_carry_no_numbers() -> None:
    left, right = draw(own(13, 16)).axes[:2]
    assert not left.texts
    assert not right.texts


def test_no_more_widths_than_can_be_told_apart() -> None:
    right = draw(own(2, 200)).axes[1]
    assert image(right).shape[1] == 128
    assert right.get_title() == "output, first 128 widths"


def test_one_token_is_a_picture() -> None:
    assert image(draw(own(1)).axes[0]).shape == (14, 1)


# --- tokens that a font or matplotlib trips over --------------------------------------------------


def test_tokens_are_drawn_as_far_as_the_font_goes(tmp_path: Path) -> None:
    """A warning of a missing glyph would be an error here, and so would half a formula."""
    tokens = ["a$b$c", "\x07\n", "猫", "\U0001fae0", "ĠThe", "▁", "é", r"\$x", "_{^"]
    table = own(9, tokens=tokens)
    figure = draw(table, tmp_path / "tokens.png")
    drawn = [r"a\$b\$c", "··", "□", "□", "The", "␣", "é", r"\\$x", "_{^"]
    assert labels(figure.axes[0].xaxis) == drawn
    draw(table, tmp_path / "tokens.svg")


def test_names_and_titles_are_drawn_the_same_way(tmp_path: Path) -> None:
    comparison = ph.AttentionComparison().add("$x_{ 猫", grouped())
    table = dataclasses.replace(comparison.table(), title="model $1\n", token="$\\frac$")
    figure = draw(table, tmp_path / "names.svg")
    assert labels(figure.axes[0].yaxis)[-1] == r"\$x_{ □  +"
    assert figure.get_suptitle() == r"How “\$\frac\$” attends, and what comes out"
    assert figure.get_supxlabel() == r"model \$1·"


# --- files ----------------------------------------------------------------------------------------


def test_a_png_is_whole(cat: Table, tmp_path: Path) -> None:
    path = tmp_path / "new" / "cat.PNG"
    draw(cat, path)
    pixels = matplotlib.image.imread(path, format="png")
    height, width = pixels.shape[:2]
    assert width > height > 500
    assert pixels[..., :3].std() > 0.1
    assert [file.name for file in path.parent.iterdir()] == ["cat.PNG"]


def test_an_svg_is_whole(cat: Table, tmp_path: Path) -> None:
    draw(cat, str(tmp_path / "cat.svg"))
    root = ET.parse(tmp_path / "cat.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(root.iter("{http://www.w3.org/2000/svg}g"))) > 100


def test_embedded_is_an_svg_in_a_data_url(cat: Table) -> None:
    [data] = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', embedded(cat))
    assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")


def test_the_comparison_draws_its_table(tmp_path: Path) -> None:
    figure = ph.AttentionComparison().plot("mat", tmp_path / "mat.png")
    assert "mat" in figure.get_suptitle()
    assert (tmp_path / "mat.png").read_bytes().startswith(b"\x89PNG")


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cat.gif", "cat", "cat.svg.pdf"])
def test_another_ending_is_refused_and_nothing_written(cat: Table, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"a plot is written as .png or .svg, not as {name!r}"):
        draw(cat, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_more_tokens_than_columns_are_refused(tmp_path: Path) -> None:
    draw(own(128))
    with pytest.raises(
        ShapeError, match="a plot shows at most 128 tokens and this has 129; use CSV or JSON, or a short"
    ):
        draw(own(129), tmp_path / "long.png")
    assert not list(tmp_path.iterdir())


def test_a_missing_matplotlib_is_an_extra(cat: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"a plot needs matplotlib.*pip install 'polyhead\[plot\]'"):
        check_plot()
    with pytest.raises(MissingExtraError, match="a plot needs matplotlib"):
        draw(cat)
    assert embedded(cat) == ""
