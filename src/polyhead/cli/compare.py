"""`polyhead compare`: all fifteen on one input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from polyhead.errors import ShapeError

if TYPE_CHECKING:
    from polyhead.compare import AttentionComparison, Table

FILE = click.Path(dir_okay=False, path_type=Path)
MODEL_ONLY = ("text", "second_text", "layer", "bare")
BARS = " ▁▂▃▄▅▆▇█"
MOST_BARS = 48
"""Most key tokens whose weights are drawn in a table's line."""


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
    from polyhead.cli.common import console, write_file

    comparison = _comparison(options)
    _add_specs(comparison, options["specs"])
    token = options["token"]
    table = comparison.table(token)
    if options["names"]:
        kept = [comparison.run(name, token).name for name in options["names"]]  # raises where one cannot run
        table = _only(table, [*kept, *(path.stem for path in options["specs"])])
    if options["plot"]:
        from polyhead.compare.plot import draw

        draw(table, options["plot"])
    if options["csv"]:
        write_file(options["csv"], table.to_csv())
    if as_json := options["as_json"]:
        click.echo(table.to_json(indent=2))
    if not as_json and str(options["csv"]) != "-":
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

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in getattr(file, "files", [])}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ShapeError(f"cannot read {path} as .npz: {error}; write it with numpy.savez(...)") from None
    allowed = {"query", "key", "value", "cross_query", "tokens"}
    if unknown := sorted(set(arrays) - allowed):
        raise ShapeError(f"{path} has an array {unknown[0]!r}; it may have {', '.join(sorted(allowed))}")
    if missing := [name for name in ("query", "key", "value") if name not in arrays]:
        raise ShapeError(f"{path} lacks the array {missing[0]!r}; it needs query, key and value")
    return arrays


def _add_specs(comparison: AttentionComparison, paths: tuple[Path, ...]) -> None:
    from polyhead.cli.common import read_text
    from polyhead.spec import AttentionSpec

    for path in paths:
        comparison.add(path.stem, AttentionSpec.from_json(read_text(path)))


def _only(table: Table, names: list[str]) -> Table:
    import dataclasses

    return dataclasses.replace(table, rows=tuple(row for row in table if row.name in names), absent={})


def _print(out: Any, comparison: AttentionComparison, table: Table) -> None:
    from rich.table import Table as Grid
    from rich.text import Text

    is_model = comparison.inputs.is_model
    out.print(Text.assemble((f"{table.title}", "bold"), f"; query “{table.token}” at position {table.position}"))
    if is_model:
        out.print(Text(repr(comparison.inputs.base), style="dim"))
    if is_model or any(row.key_tokens != comparison.tokens for row in table):
        out.print(Text(" ".join(comparison.tokens), style="dim"))
    grid = Grid(box=None, pad_edge=False)
    width = max(len(row.output) for row in table)
    dims = range(width if width <= 8 else 0)
    headings = ["#", "mechanism", "changes", *(f"dim {i}" for i in dims), "most on", "", "weights", "from #1", "note"]
    right = {"#", "", "from #1", *(f"dim {i}" for i in dims)}
    for heading in headings:
        grid.add_column(heading, justify="right" if heading in right else "left", no_wrap=heading != "note")
    for row in table:
        token, weight = row.top
        mark = "● " if row.is_own else "  " if is_model else ""
        cells = [str(row.number or "+"), f"{mark}{row.name}", row.changes, *(f"{row.output[i]:.4f}" for i in dims)]
        cells += [token, f"{weight:.3f}", _bars(row.weights), f"{row.distance:.3f}", row.note]
        grid.add_row(*(Text(cell) for cell in cells), style="bold" if row.is_own else None)
    out.print(grid)
    for line in _remarks(comparison, table):
        out.print(Text(line, style="dim"))


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
    if {"flash", "scaled-dot-product"} <= {row.name for row in table}:
        error = comparison.flash_error()
        lines.append(f"flash differs from scaled-dot-product by at most {error:.1e} over all heads and tokens")
    same = [d for d in (difference(a, b) for a, b in combinations(table, 2)) if not d.differ and d.reason]
    if not comparison.inputs.is_model:
        lines += [f"{d.first} = {d.second}: {d.reason}" for d in same if d.first != "scaled-dot-product"]
        return lines
    own = [f"{d.second} ({d.reason})" for d in same if d.first == "scaled-dot-product"]
    if own:
        lines.append(f"equal to scaled-dot-product here: {', '.join(own)}")
    lines.append("● is the model's own mechanism, from which #1's row is computed. The others are a what-if on frozen")
    lines.append("weights: they tell what the arithmetic does to these heads, and nothing about a model trained so.")
    return lines
