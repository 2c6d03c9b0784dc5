"""`polyhead list`: the fifteen in a table."""

from __future__ import annotations

import json

import click

SCHEMA = 1


@click.command("list", epilog="Next: polyhead show NAME explains one of them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """List the fifteen mechanisms, what each changes, and what it costs.

    \b
    Examples:
      polyhead list
      polyhead list --json
    """
    from polyhead.catalog import mechanisms

    if as_json:
        rows = [
            {
                "number": m.number,
                "name": m.name,
                "title": m.title,
                "aliases": m.aliases,
                "year": m.year,
                "changes": m.changes,
                "time": m.time,
                "cache": m.cache,
            }
            for m in mechanisms()
        ]
        click.echo(json.dumps({"schema": SCHEMA, "mechanisms": rows}, indent=2, ensure_ascii=False))
        return
    from rich.table import Table

    from polyhead.cli.common import console

    table = Table(box=None, pad_edge=False)
    for name, justify in {"#": "right", "name": "left", "mechanism": "left", "year": "left", "changes": "left"}.items():
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("time")
    table.add_column("cache, per token and layer")
    for m in mechanisms():
        table.add_row(str(m.number), m.name, m.title, str(m.year), m.changes, m.time, m.cache)
    console().print(table)
