"""`polyhead show`: one mechanism explained, or a spec printed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from polyhead.errors import UnknownNameError

if TYPE_CHECKING:
    from polyhead.catalog import Mechanism
    from polyhead.spec import AttentionSpec

SCHEMA = 1


@click.command("show", epilog="Next: polyhead compare --mechanism NAME runs it beside the baseline.")
@click.argument("spec")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; of a spec, a file that --spec takes.")
def command(spec: str, as_json: bool) -> None:
    """Explain a mechanism: formula, what it changes, cost, when to use it, its row of the example, its spec.

    SPEC is a mechanism's name or number, MODEL:LAYER, or a JSON file.

    \b
    Examples:
      polyhead show gqa
      polyhead show smollm2:0
      polyhead show rope --json
    """
    from polyhead.catalog import mechanism
    from polyhead.cli.common import read_spec

    try:
        entry = mechanism(spec)
    except UnknownNameError:
        found = read_spec(spec)
        click.echo(found.to_json(indent=2) if as_json else _spec_text(found))
        return
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, **_data(entry)}, indent=2, ensure_ascii=False))
    else:
        _print(entry)


def _data(entry: Mechanism) -> dict[str, Any]:
    import dataclasses

    skipped = {"substitute", "forces"}
    data = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry) if f.name not in skipped}
    example = _example_row(entry)
    data |= {"forces": dataclasses.asdict(entry.forces), "spec": json.loads(entry.spec.to_json())}
    return data | {"example": {"token": example[0], "output": example[1].tolist()}}


def _example_row(entry: Mechanism) -> tuple[str, Any]:
    from polyhead.catalog import EXAMPLE
    from polyhead.compare import AttentionComparison

    return EXAMPLE.token, AttentionComparison().run(entry.name, EXAMPLE.token).output


def _print(entry: Mechanism) -> None:
    from rich.table import Table
    from rich.text import Text

    from polyhead.cli.common import console

    out = console()
    out.print(Text(f"#{entry.number}  {entry.title}", style="bold"), Text(f"  {entry.name}", style="dim"))
    out.print(Text(entry.paper if str(entry.year) in entry.paper else f"{entry.paper}, {entry.year}", style="dim"))
    out.print()
    out.print(Text(f"  {entry.formula}"))
    out.print()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    pull = {-1: "against", 0: "neutral", 1: "for"}
    forces = {name: getattr(entry.forces, name) for name in ("quality", "speed", "memory", "position")}
    token, output = _example_row(entry)
    rows = {
        "what": entry.what,
        "changes": entry.changes,
        "gains": entry.gains,
        "loses": entry.loses,
        "when": entry.when,
        "time": entry.time,
        "cache": f"{entry.cache} (numbers per token and layer)",
        "pulls": ", ".join(f"{pull[value]} {name}" for name, value in forces.items() if value) or "nowhere",
        "also called": ", ".join(entry.aliases),
        "example": f"{token} gets [{', '.join(f'{x:.4f}' for x in output)}]",
        "spec": repr(entry.spec),
    }
    for name, text in rows.items():
        table.add_row(name, Text(text))
    out.print(table)


def _spec_text(spec: AttentionSpec) -> str:
    lines = [f"{name:<11}{getattr(spec, name)!r}" for name in ("storage", "position", "pattern", "weighting")]
    inputs = {name: shape for name, shape in spec.input_shapes().items() if shape}
    lines += [f"{name:<11}{shape[0]} heads of width {shape[1]}" for name, shape in inputs.items()]
    lines.append(f"{'cache':<11}{_cache_text(spec)}")
    learned = spec.parameter_shapes()
    lines.append(f"{'learns':<11}{', '.join(f'{n} {list(s)}' for n, s in learned.items()) or 'nothing'}")
    return "\n".join(lines)


def _cache_text(spec: AttentionSpec) -> str:
    from polyhead.errors import SpecError
    from polyhead.spec import retention

    try:
        kept = retention(spec)
    except SpecError as error:
        return f"none: {error}"
    if kept.kind == "state":
        return f"state, {kept.row:,} numbers whatever the length"
    window = f", of at most {kept.reach.size():,} tokens" if kept.kind == "rolling" else ""
    return f"{kept.kind}, {kept.row:,} numbers a token{window}"
