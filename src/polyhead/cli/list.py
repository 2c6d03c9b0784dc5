"""`polyhead list`: the fifteen in a table, or the models of the catalogue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from polyhead.catalog import Model

SCHEMA = 1


@click.command("list", epilog="Next: polyhead show NAME explains one of them.")
@click.option("--models", "of_models", is_flag=True, help="List published models instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(of_models: bool, as_json: bool) -> None:
    """List the fifteen mechanisms, what each changes, and what it costs; or published models and their sizes.

    \b
    Examples:
      polyhead list
      polyhead list --models
      polyhead list --json
    """
    what, rows, columns = _models() if of_models else _mechanisms()
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, what: rows}, indent=2, ensure_ascii=False))
    else:
        _print_table(columns, rows)


Rows = list[dict[str, Any]]


def _mechanisms() -> tuple[str, Rows, dict[str, str]]:
    from polyhead.catalog import mechanisms

    names = ("number", "name", "title", "aliases", "year", "changes", "time", "cache")
    columns = {"#": "number", "name": "name", "mechanism": "title", "year": "year", "changes": "changes"}
    columns |= {"time": "time", "cache, per token and layer": "cache"}
    return "mechanisms", [{name: getattr(entry, name) for name in names} for entry in mechanisms()], columns


def _models() -> tuple[str, Rows, dict[str, str]]:
    from polyhead.catalog import models

    columns = {"name": "name", "layers": "num_layers", "width": "embed_dim", "heads": "num_heads"}
    columns |= {"kv heads": "num_kv_heads", "head width": "qk_head_dim", "vocabulary": "vocab_size"}
    columns |= {"tokens": "max_seq_len", "parameters": "parameters", "per token": "active_parameters"}
    return "models", list(map(_model_row, models())), columns


def _model_row(model: Model) -> dict[str, Any]:
    """Return a model's sizes; a latent's keys and values are no heads."""
    from polyhead.spec import Latent

    spec = model.layers[0].attention
    return {
        "name": model.name,
        "title": model.title,
        "model_type": model.model_type,
        "num_layers": model.num_layers,
        "embed_dim": model.embed_dim,
        "num_heads": spec.num_heads,
        "num_kv_heads": None if isinstance(spec.storage, Latent) else spec.num_kv_heads,
        "qk_head_dim": spec.qk_head_dim,
        "vocab_size": model.vocab_size,
        "max_seq_len": model.max_seq_len,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
    }


def _print_table(columns: dict[str, str], rows: Rows) -> None:
    from rich.table import Table

    from polyhead.cli.common import console

    table = Table(box=None, pad_edge=False)
    for heading, name in columns.items():
        is_number = isinstance(rows[0][name], int) and heading != "year"
        table.add_column(heading, justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(_cell(heading, row[name]) for heading, name in columns.items()))
    console().print(table)


def _cell(heading: str, value: Any) -> str:
    if value is None:
        return "latent" if heading == "kv heads" else "-"
    return f"{value:,}" if isinstance(value, int) and heading != "year" else str(value)
