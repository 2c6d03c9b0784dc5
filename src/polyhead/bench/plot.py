"""Time against length, both logarithmic: a line for each mechanism, its exponent in the legend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyhead.bench.records import Record, Row
from polyhead.errors import UnsupportedError
from polyhead.files import check_plot, write_plot


def grown(record: Record) -> list[Row]:
    """Return the rows that were timed at several lengths."""
    return [row for row in record.rows if row.exponent is not None]


def draw(record: Record, path: Path | None = None) -> Any:
    """Draw the cases that were timed at several lengths.

    Args:
        record: What was measured.
        path: Where to write it, ``.png`` or ``.svg``. None: nowhere.

    Returns:
        The matplotlib ``Figure``.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        UnsupportedError: If the file's ending is another, or no case was timed at several lengths.
    """
    check_plot(path)
    rows = grown(record)
    if not rows:
        raise UnsupportedError("there is no growth to draw: no case was timed at two lengths or more")
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    axes = figure.subplots()
    lengths: set[int] = set()
    for row in rows:
        times = row.seconds_by_length
        lengths |= set(times)
        label = f"{row.case}, {row.kernel}: N^{row.exponent:.2f}"
        axes.loglog(list(times), [1e3 * taken for taken in times.values()], marker="o", label=label)
    axes.xaxis.minorticks_off()
    axes.set_xticks(sorted(lengths), [f"{length:,}" for length in sorted(lengths)], rotation=30)
    axes.set_xlabel("keys N")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("milliseconds")
    axes.set_title(f"{record.machine}, {record.dtype}", fontsize=8)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    if path is not None:
        write_plot(figure, path)
    return figure
