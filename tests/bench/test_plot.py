"""The picture of time against length."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from polyhead.bench import plot
from polyhead.bench.records import Record
from polyhead.errors import UnsupportedError


def test_the_plot_has_a_line_for_each_case_with_growth(record: Record, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
    figure = plot.draw(record, tmp_path / "growth.svg")
    (axes,) = figure.axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[16, 32, 64]]
    row = record.rows[1]
    assert axes.get_legend().get_texts()[0].get_text() == f"window, {row.kernel}: N^{row.exponent:.2f}"
    assert "<svg" in (tmp_path / "growth.svg").read_text(encoding="utf-8")


def test_a_plot_of_no_growth_is_refused(record: Record) -> None:
    pytest.importorskip("matplotlib", reason="plots are drawn with matplotlib")
    with pytest.raises(UnsupportedError, match="no growth to draw"):
        plot.draw(dataclasses.replace(record, rows=record.rows[:1]))
