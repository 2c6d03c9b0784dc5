"""A plan's picture: a bar for each stack, and where the device ends."""

from __future__ import annotations

from pathlib import Path

import pytest

import polyhead as ph
from polyhead.errors import UnsupportedError
from polyhead.planner.plot import MOST_STACKS, draw, drawn


def test_a_bar_for_each_stack_and_part(tmp_path: Path) -> None:
    found = ph.plan("llama-3-8b", context=131_072, device="a100-80")
    figure = draw(found, tmp_path / "plan.png")
    left, right = figure.axes
    count = len(drawn(found))
    assert 8 <= count <= MOST_STACKS
    assert drawn(found)[0] is found.own
    assert len(left.patches) == 3 * count
    assert len(right.patches) == 2 * count
    first = [patch.get_width() for patch in left.patches[::count]]
    assert sum(first) == pytest.approx(found.own.memory.total / 2**30)  # type: ignore[union-attr]
    assert left.get_yticklabels()[0].get_text() == "as it is: GQA-8 + RoPE + causal + softmax"
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_no_times_where_they_are_not_known() -> None:
    assert len(draw(ph.plan("llama-3-8b", context=1000, device="m3-max")).axes) == 1


def test_what_cannot_be_drawn_says_so(tmp_path: Path) -> None:
    found = ph.plan("llama-3-8b", context=1000, device="l4", task="translate")
    with pytest.raises(UnsupportedError, match="nothing to draw"):
        draw(found)
    with pytest.raises(UnsupportedError, match=r"\.png or \.svg"):
        draw(found, tmp_path / "plan.pdf")
