"""A token's weights and outputs under every mechanism, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyhead.compare.table import Row, Table
from polyhead.errors import ShapeError
from polyhead.files import check_plot, write_plot
from polyhead.page.notebook import picture

MAX_TOKENS = 128
"""Most key tokens that a picture can show one column each."""

MAX_NUMBERED = 12
"""Most columns whose numbers are written into them."""

MAX_WIDTH = 128
"""Most output widths that a picture can show one column each."""

HUES = {
    "nothing": "#444444",
    "computation": "#444444",
    "source": "#7a5195",
    "storage": "#0072b2",
    "position": "#d55e00",
    "pattern": "#007a5a",
    "weighting": "#a3195b",
    "combination": "#444444",
}
"""A hue for each of the four choices, readable on white by colour-blind eyes too."""


def draw(table: Table, path: str | Path | None = None) -> Any:
    """Draw a table's weights and outputs.

    Args:
        table: One token's rows.
        path: Where to write it, ``.png`` or ``.svg``. None: nowhere.

    Returns:
        The matplotlib ``Figure``.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        ShapeError: If there are too many tokens to draw.
        UnsupportedError: If the file's ending is another.
    """
    check_plot(path)
    columns = max(len(row.weights) for row in table)
    if columns > MAX_TOKENS:
        raise ShapeError(
            f"a plot shows at most {MAX_TOKENS} tokens and this has {columns}; use CSV or JSON, or a shorter text"
        )
    from matplotlib.figure import Figure

    width = min(MAX_WIDTH, max(len(row.output) for row in table))
    inches = [max(2.5, min(12.0, 0.42 * columns)), max(2.0, min(7.0, 0.42 * width))]
    figure = Figure(figsize=(sum(inches) + 3.2, 2.2 + 0.34 * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=inches)
    figure.suptitle(f"How “{_readable(table.token)}” attends, and what comes out", fontsize=12)
    figure.supxlabel(_readable(table.title), fontsize=8, color="#666666")
    _draw_weights(left, table, columns)
    _draw_outputs(right, table, width)
    if path is not None:
        write_plot(figure, Path(path))
    return figure


def embedded(table: Table) -> str:
    """Return the picture as an HTML image, or nothing where it cannot be drawn."""
    return picture(lambda: draw(table), "weights and outputs")


def _draw_weights(axes: Any, table: Table, columns: int) -> None:
    grid = np.full((len(table), columns), np.nan)
    for index, row in enumerate(table):
        grid[index, : len(row.weights)] = row.weights
    low, high = min(0.0, float(np.nanmin(grid))), max(float(np.nanmax(grid)), 1e-9)
    axes.set_facecolor("#e6e6e6")  # shows through where there is no weight at all
    image = axes.imshow(np.where(grid == 0, np.nan, grid), cmap="cividis", vmin=low, vmax=high, aspect="auto")
    axes.set_title("weight on each key token (grey: none)", fontsize=10)
    _name_columns(axes, table)
    _label_rows(axes, table.rows)
    if columns <= MAX_NUMBERED:
        _write_numbers(axes, image)
    axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)


def _name_columns(axes: Any, table: Table) -> None:
    """Write the key tokens below, and above those of another sequence where a row has them."""
    own = next((row.key_tokens for row in table if row.changes != "source"), table.rows[0].key_tokens)
    other = next((row for row in table if row.key_tokens != own), None)
    _write_tokens(axes, own)
    if other is not None:
        above = axes.secondary_xaxis("top")
        _write_tokens(above, other.key_tokens)
        above.tick_params(axis="x", colors=HUES[other.changes])
        above.set_xlabel(f"tokens of {_readable(other.name)}", fontsize=8, color=HUES[other.changes])


def _write_tokens(axis: Any, tokens: tuple[str, ...]) -> None:
    names = [_readable(token) for token in tokens]
    flat = len(names) <= MAX_NUMBERED and max(map(len, names)) <= 5
    axis.set_xticks(range(len(names)), names, rotation=0 if flat else 90, fontsize=8)


def _draw_outputs(axes: Any, table: Table, width: int) -> None:
    grid = np.full((len(table), width), np.nan)
    for index, row in enumerate(table):
        grid[index, : min(width, len(row.output))] = row.output[:width]
    bound = max(float(np.nanmax(np.abs(grid))), 1e-9)
    image = axes.imshow(grid, cmap="PuOr_r", vmin=-bound, vmax=bound, aspect="auto")
    axes.set_title(
        "output" if width == max(len(r.output) for r in table) else f"output, first {width} widths", fontsize=10
    )
    axes.set_xticks(range(0, width, 1 if width <= 16 else 8))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("dim", fontsize=8)
    axes.set_yticks([])
    if width <= 8:
        _write_numbers(axes, image)
    axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)


def _label_rows(axes: Any, rows: tuple[Row, ...]) -> None:
    labels = [f"{_readable(row.name)}{' (own)' if row.is_own else ''}  {row.number or '+'}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(HUES[row.changes])


def _write_numbers(axes: Any, image: Any) -> None:
    """Write each cell's number into it, in white where the cell is dark."""
    for (row, column), value in np.ndenumerate(np.ma.filled(image.get_array(), np.nan)):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = "white" if 0.3 * red + 0.6 * green + 0.1 * blue < 0.45 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)


def _readable(text: str) -> str:
    """Return a text without what the font cannot draw, which shows as □, and without matplotlib's own notation."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    glyphs = get_font(findfont(FontProperties())).get_charmap()
    spaced = text.replace("Ġ", " ").replace("▁", " ")
    drawn = "".join(("□" if ord(c) not in glyphs else c) if c.isprintable() else "·" for c in spaced)
    return (drawn.strip() or "␣").replace("$", r"\$")
