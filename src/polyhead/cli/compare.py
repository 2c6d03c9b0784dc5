"""`polyhead compare`: all fifteen on one input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from polyhead.errors import ShapeError

if TYPE_CHECKING:
    from rich.console import Console

    from polyhead.compare import AttentionComparison, Table

FILE = click.Path(dir_okay=False, path_type=Path)
MODEL_ONLY = ("text", "second_text", "layer", "bare")
BARS = " ▁▂▃▄▅▆▇█"
MOST_BARS = 48
"""Most key tokens whose weights are drawn in a table's line."""

MOST_DIMS = 8
"""Most output widths that are written into a table's line."""

NARROWEST_NOTE = 30
"""Columns that a note needs beside the numbers; with fewer, notes stand below the table."""


@click.command("compare")
@click.option("--token", help="The query token: its text or position.  [default: cat; elsewhere the last]")
@click.option("--mechanism", "names", multiple=True, help="Show this one only; may be repeated.")
@click.option("--spec", "specs", multiple=True, type=FILE, help="Add a spec of your own, a JSON file; may be repeated.")
@click.option("--tensors", type=FILE, help="Your arrays: an .npz with query, key, value [cross_query, tokens].")
@click.option("--model", help="A checkpoint directory, a GGUF file, or smollm2.")
@click.option("--text", help="What the model reads.")
@click.option("--second-text", help="A text whose keys and values cross-attention (#4) attends to.")
@click.option("--layer", type=int, default=0, show_default=True, help="The model's layer.")
@click.option("--head", type=int, default=0, show_default=True, help="The query head shown.")
@click.option(
    "--bare", is_flag=True, help="The textbook's form (full, no position, softmax), not the model's own spec."
)
@click.option(
    "--engine", type=click.Choice(["numpy", "torch"]), default="numpy", show_default=True, help="Who computes."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: outputs, weights and specs at full precision.")
@click.option("--plot", type=FILE, help="Write a picture, .png or .svg.")
@click.option("--csv", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True), help="Write CSV; - is stdout.")
def command(**options: Any) -> None:
    """Run all fifteen mechanisms on one input and show one token's row under each.

    The input is the textbook's shared example, your own arrays (--tensors), or a layer of a real model reading a
    text (--model). On a model each mechanism replaces its choice in the model's own spec: the model's own
    mechanism is marked, and the others are a what-if on frozen weights.

    \b
    Examples:
      polyhead compare
      polyhead compare --token mat --mechanism causal --mechanism scaled-dot-product
      polyhead compare --spec mine.json --plot mine.png
      polyhead compare --tensors qkv.npz --token 3 --csv -
      polyhead compare --model smollm2 --text "The cat sat on the mat" --layer 12 --head 3
    """
    from polyhead.cli.common import console, write_file, writing

    if options["as_json"] and str(options["csv"]) == "-":
        raise click.UsageError("--json and --csv - both write to stdout; give --csv a file")
    if options["plot"]:
        from polyhead.files import check_plot

        check_plot(options["plot"])  # before a model is read for minutes
    comparison = _comparison(options)
    _add_specs(comparison, options["specs"])
    named = [*options["names"], *(path.stem for path in options["specs"])] if options["names"] else None
    table = comparison.table(options["token"], names=named)
    if options["plot"]:
        from polyhead.compare.plot import draw

        with writing("--plot", options["plot"]):
            draw(table, options["plot"])
    if options["csv"]:
        with writing("--csv", options["csv"]):
            write_file(options["csv"], table.to_csv())
    if options["as_json"]:
        click.echo(table.to_json(indent=2))
    elif str(options["csv"]) != "-":
        _print(console(), comparison, table)


def _comparison(options: dict[str, Any]) -> AttentionComparison:
    from polyhead.cli.common import progress
    from polyhead.compare import AttentionComparison

    context = click.get_current_context()
    given = {name for name in (*MODEL_ONLY, "head") if context.get_parameter_source(name) is not _default()}
    if options["model"] and options["tensors"]:
        raise click.UsageError("--model and --tensors are two inputs; give one of them")
    if not options["model"]:
        if extra := sorted(given - {"head"}):
            raise click.UsageError(
                f"--{extra[0].replace('_', '-')} goes with --model; add --model smollm2, for example"
            )
        if options["tensors"]:
            arrays = _read_arrays(options["tensors"])
            return AttentionComparison(**arrays, engine=options["engine"], head=options["head"])
        return AttentionComparison(engine=options["engine"], head=options["head"])
    if options["text"] is None:
        raise click.UsageError('--model needs a text to read; add --text "The cat sat on the mat"')
    with progress(f"Reading with {options['model']}"):
        return AttentionComparison.from_model(
            options["model"],
            options["text"],
            layer=options["layer"],
            head=options["head"],
            second_text=options["second_text"],
            bare=options["bare"],
            engine=options["engine"],
        )


def _default() -> Any:
    return click.core.ParameterSource.DEFAULT


def _read_arrays(path: Path) -> dict[str, Any]:
    """Return the arrays of an .npz file, checked to be those that a comparison takes."""
    import zipfile
    import zlib

    import numpy as np

    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ShapeError(f"cannot read {path} as .npz: {reason}; write it with numpy.savez(...)") from None
    allowed = {"query", "key", "value", "cross_query", "tokens"}
    if unknown := sorted(set(arrays) - allowed):
        raise ShapeError(f"{path} has an array {unknown[0]!r}; it may have {', '.join(sorted(allowed))}")
    if missing := [name for name in ("query", "key", "value") if name not in arrays]:
        raise ShapeError(f"{path} lacks the array {missing[0]!r}; it needs query, key and value")
    return arrays


def _add_specs(comparison: AttentionComparison, paths: tuple[Path, ...]) -> None:
    from polyhead.cli.common import read_spec_file

    for path in paths:
        comparison.add(path.stem, read_spec_file(path))


def _print(out: Console, comparison: AttentionComparison, table: Table) -> None:
    from rich.text import Text

    is_model = comparison.inputs.own is not None
    query = f"; query “{table.token}” at position {table.position}"
    out.print(Text.assemble((_printable(table.title), "bold"), _printable(query)))
    if is_model:
        out.print(Text(repr(comparison.inputs.base), style="dim"))
    if is_model or any(row.key_tokens != comparison.tokens for row in table):
        out.print(Text(_printable(" ".join(comparison.tokens)), style="dim"))
    columns = _columns(table, is_model=is_model)
    gap = _fit(columns, out.width)
    _print_grid(out, columns, gap, [row.is_own for row in table])
    notes = [] if "note" in columns else [f"{row.name}: {row.note}" for row in table if row.note]
    for line in [*notes, *_remarks(comparison, table)]:
        out.print(Text(_printable(line), style="dim"))


def _columns(table: Table, *, is_model: bool) -> dict[str, list[str]]:
    """Return the text of every column, by its heading."""
    width = max(len(row.output) for row in table)
    dims = range(width if width <= MOST_DIMS else 0)
    columns = {
        "#": [str(row.number or "+") for row in table],
        "mechanism": [("● " if row.is_own else "  " if is_model else "") + row.name for row in table],
        "changes": [row.changes for row in table],
        **{f"dim {i}": [f"{row.output[i]:.4f}" for row in table] for i in dims},
        "most on": [row.top[0] for row in table],
        "weight": [f"{row.top[1]:.3f}" for row in table],
        "weights": [_bars(row.weights) for row in table],
        "from #1": [f"{row.distance:.3f}" for row in table],
        "note": [row.note for row in table],
    }
    return {heading: [_printable(cell) for cell in cells] for heading, cells in columns.items()}


def _fit(columns: dict[str, list[str]], width: int) -> int:
    """Drop the columns that a terminal has no room for, the least telling first; return the gap between the rest."""
    from rich.cells import cell_len

    needed = {heading: max(map(cell_len, [heading, *cells])) for heading, cells in columns.items()}
    needed["note"] = min(needed["note"], NARROWEST_NOTE)  # the one column that may wrap

    def fits(gap: int) -> bool:
        return sum(needed[heading] for heading in columns) + gap * (len(columns) - 1) <= width

    for heading in ("note", "changes"):
        if fits(2):
            break
        del columns[heading]
    if not fits(1):
        del columns["weights"]
    return 2 if fits(2) else 1


def _print_grid(out: Console, columns: dict[str, list[str]], gap: int, is_own: list[bool]) -> None:
    from rich.cells import cell_len
    from rich.table import Table as Grid
    from rich.text import Text

    left = {"mechanism", "changes", "most on", "weights", "note"}
    grid = Grid(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for heading, texts in columns.items():
        whole = None if heading == "note" else max(map(cell_len, [heading, *texts]))
        justify: Literal["left", "right"] = "left" if heading in left else "right"
        grid.add_column(heading, justify=justify, no_wrap=whole is not None, min_width=whole)
    for cells, own in zip(zip(*columns.values(), strict=True), is_own, strict=True):
        grid.add_row(*map(Text, cells), style="bold" if own else None)
    out.print(grid, crop=False)  # where even this is too wide the terminal wraps it, and no number is cut short


def _printable(text: str) -> str:
    """Return a text without what would move the cursor or break the line."""
    return "".join(c if c.isprintable() else "·" for c in text)


def _bars(weights: Any) -> str:
    """Return a bar for each key token's weight, the tallest for the row's largest; a minus where it is negative."""
    if len(weights) > MOST_BARS:
        return "…"
    steps = len(BARS) - 1
    heights = [round(float(weight) / max(float(weights.max()), 1e-9) * steps) for weight in weights]
    return "".join("-" if height < 0 else BARS[height] for height in heights)


def _remarks(comparison: AttentionComparison, table: Table) -> list[str]:
    """Return what the rows alone do not say."""
    from itertools import combinations

    from polyhead.compare.differences import difference

    lines = [f"{name} is left out: {reason}" for name, reason in table.absent.items()]
    has_both = {"flash", "scaled-dot-product"} <= {row.name for row in table}
    if has_both:
        error = comparison.flash_error()
        lines.append(f"flash differs from scaled-dot-product by at most {error:.1e} over all heads and tokens")
    pairs = [(a, b) for a, b in combinations(table, 2) if not (has_both and "flash" in (a.name, b.name))]
    same = [d for d in (difference(a, b) for a, b in pairs) if not d.differ]
    if comparison.inputs.own is None:
        return lines + [f"{d.first} = {d.second}: {d.reason}" for d in same]
    equal = [f"{d.second} ({d.reason})" for d in same if d.first == "scaled-dot-product"]
    if equal:
        lines.append(f"equal to scaled-dot-product here: {', '.join(equal)}")
    marked = "● is the model's own mechanism. The others are" if any(row.is_own for row in table) else "These are"
    lines.append(f"{marked} a what-if on frozen weights: they tell what the arithmetic does to these heads,")
    lines.append("and nothing about a model trained so.")
    return lines
