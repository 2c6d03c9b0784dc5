"""`polyhead tables`: the textbook's tables, computed from the specs at any sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

SCHEMA = 1
NAMES = ("complexity", "forces", "memory", "scenarios")
SIGNS = {-1: "pays", 0: "", 1: "gains"}


@click.command("tables", epilog="Next: polyhead show NAME says where a mechanism's figures come from.")
@click.argument("names", nargs=-1, type=click.Choice(NAMES))
@click.option("--context", type=int, help="Tokens of a sequence.  [default: 131072; of complexity 8192]")
@click.option("--layers", "num_layers", type=int, default=32, show_default=True, help="Number of layers.")
@click.option("--width", "embed_dim", type=int, default=4096, show_default=True, help="Width of a token.")
@click.option("--heads", "num_heads", type=int, default=32, show_default=True, help="Heads, which share the width.")
@click.option("--groups", "num_groups", type=int, default=8, show_default=True, help="Key/value heads of GQA.")
@click.option("--window", type=int, default=4096, show_default=True, help="Tokens that a window holds.")
@click.option("--latent", "latent_rank", type=int, default=512, show_default=True, help="Width of MLA's latent.")
@click.option("--rope", "rope_dim", type=int, default=64, show_default=True, help="Width of MLA's RoPE key.")
@click.option("--precision", default="fp16", show_default=True, help="Format of what is kept, such as bf16, fp8.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(names: tuple[str, ...], context: int | None, as_json: bool, **sizes: Any) -> None:
    """Print the textbook's tables, computed from the specs that run.

    complexity: the fifteen's operations, and how they grow. forces: who gains and who pays. memory: what each way to
    store keeps of a token, and of a whole sequence in all layers, beside what the textbook prints. scenarios: which
    stack polyhead plan finds for the textbook's eight deployments, beside its own; sizes do not change these. Without a
    NAME all four.

    \b
    Examples:
      polyhead tables memory
      polyhead tables memory --context 262144 --layers 80 --width 8192 --heads 64
      polyhead tables complexity --context 16384 --window 512
    """
    from polyhead.cli.common import progress
    from polyhead.cost import tables
    from polyhead.planner.scenarios import rows as rows_of_answers

    shape = tables.Shape(context=tables.Shape.context if context is None else context, **sizes)
    short = tables.Shape(context=tables.COMPLEXITY_CONTEXT if context is None else context, **sizes)
    make: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "complexity": lambda: tables.complexity(short),
        "forces": tables.forces,
        "memory": lambda: tables.memory(shape),
        "scenarios": rows_of_answers,
    }
    with progress(f"counting the pairs of {short.context:,} tokens ..."):
        rows = {name: make[name]() for name in NAMES if name in (names or NAMES)}
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **rows}, indent=2, ensure_ascii=False))
        return
    notes = {
        "complexity": f"attention of one layer, {short.context:,} tokens; N^ is measured against half as many",
        "forces": "against the baseline",
        "memory": _memory_note(rows.get("memory"), shape.precision),
        "scenarios": "the best, against the next or the textbook's: its figure × what its changes must be worth",
    }
    for number, (name, found) in enumerate(rows.items()):
        click.echo(f"{chr(10) if number else ''}{name}: {notes[name]}")
        _print(_CELLS[name], found)


Cells = dict[str, Callable[[dict[str, Any]], str]]


def _memory_note(rows: list[dict[str, Any]] | None, precision: str) -> str:
    if not rows:
        return ""
    first = rows[0]
    note = f"{precision}; a sequence of {first['context']:,} tokens"
    if any(row["book_gib"] is not None for row in rows):
        return f"{note}. The textbook's totals are those of 8 layers"
    return note


def _size(count: float | None) -> str:
    return "" if count is None else f"{count / 1024:,.4g} KiB"


def _gib(count: float | None) -> str:
    return "" if count is None else f"{count:,.4g} GiB"


_CELLS: dict[str, Cells] = {
    "complexity": {
        "#": lambda row: str(row["number"]),
        "mechanism": lambda row: row["name"],
        "time": lambda row: row["time"],
        "pairs seen": lambda row: "none formed" if row["pairs"] is None else f"{100 * row['pairs']:.3g} %",
        "GFLOP": lambda row: f"{row['operations'] / 1e9:,.1f}",
        "of #1": lambda row: f"{row['of_baseline']:.3g}",
        "grows as": lambda row: f"N^{row['exponent']:.2f}",
    },
    "forces": {
        "#": lambda row: str(row["number"]),
        "mechanism": lambda row: row["name"],
        **{
            force: (lambda row, force=force: SIGNS[row[force]])  # type: ignore[misc]
            for force in ("quality", "speed", "memory", "position")
        },
        "what it gains": lambda row: row["gains"],
        "what it pays": lambda row: row["loses"],
    },
    "memory": {
        "what is kept": lambda row: row["name"],
        "a token and layer": lambda row: "fixed" if row["token_bytes"] is None else _size(row["token_bytes"]),
        "MHA has": lambda row: "" if row["of_mha"] is None else f"{row['of_mha']:.3g} ×",
        "all layers": lambda row: f"{_gib(row['gib'])} in {row['layers']}",
        "8 layers": lambda row: _gib(row["book_layers_gib"]),
        "the textbook": lambda row: _gib(row["book_gib"]),
    },
    "scenarios": {
        "scenario": lambda row: row["name"],
        "asked": lambda row: row["asked"],
        "planned": lambda row: row["planned"],
        "the textbook": lambda row: row["book"],
        "": lambda row: "agrees" if row["agrees"] else "differs",
        "why": lambda row: row["reason"],
    },
}


def _print(cells: Cells, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from polyhead.cli.common import console

    table = Table(box=None, pad_edge=False)
    for heading in cells:
        is_number = heading in {"#", "GFLOP", "of #1", "pairs seen", "a token and layer", "MHA has", "8 layers"}
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell(row) for cell in cells.values()))
    console().print(table)
