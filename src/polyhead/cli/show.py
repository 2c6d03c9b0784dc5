"""`polyhead show`: one mechanism explained, a model layer by layer, or a spec printed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from polyhead.errors import SpecError, UnknownNameError

if TYPE_CHECKING:
    from polyhead.catalog import Mechanism, Model
    from polyhead.spec import AttentionSpec, LayerSpec, Retention

SCHEMA = 1
CHOICES = ("storage", "position", "pattern", "weighting")
STACKS = {"encoder_layers": "encoder, ", "layers": "", "cross_layers": "attention to the encoder, "}
"""A model's stacks, and what the heading of a layer says before its number."""


@click.command("show", epilog="Next: polyhead compare --mechanism NAME runs it beside the baseline.")
@click.argument("spec")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; of a spec, a file that --spec takes.")
def command(spec: str, as_json: bool) -> None:
    """Explain a mechanism: formula, what it changes, cost, when to use it, its row of the example, its spec.

    Or print which attention a model has, layer by layer, what it keeps in its cache, what it learns, and where the
    figures come from; or a single spec.

    SPEC is a mechanism's name or number; a model's name (polyhead list --models), its config.json, or the directory
    of that; MODEL:LAYER; or a JSON file.

    \b
    Examples:
      polyhead show gqa
      polyhead show llama-3-8b
      polyhead show llama-3-8b:3
      polyhead show my-model/config.json
      polyhead show rope --json
    """
    from polyhead.catalog import mechanism
    from polyhead.cli.common import read_model, read_spec

    try:
        entry = mechanism(spec)
    except UnknownNameError:
        entry = None
    model = read_model(spec) if entry is None else None
    if entry is not None and not as_json:
        _print(entry)
    elif entry is not None:
        click.echo(_json(_data(entry)))
    elif model is not None:
        click.echo(_json(_model_data(model)) if as_json else _model_text(model))
    else:
        found = read_spec(spec)
        click.echo(found.to_json(indent=2) if as_json else _spec_text(found))


def _json(data: dict[str, Any]) -> str:
    return json.dumps({"schema": SCHEMA, **data}, indent=2, ensure_ascii=False)


# --- a mechanism ----------------------------------------------------------------------------------


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


# --- a spec ---------------------------------------------------------------------------------------


def _spec_text(spec: AttentionSpec) -> str:
    from polyhead.spec.words import cached, learned

    inputs = {name: shape for name, shape in spec.input_shapes().items() if shape}
    rows = {name: repr(getattr(spec, name)) for name in CHOICES}
    rows |= {name: f"{shape[0]} heads of width {shape[1]}" for name, shape in inputs.items()}
    return "\n".join(_lines({**rows, "cache": cached(spec), "learns": learned(spec.parameter_shapes())}))


def _lines(rows: dict[str, str], indent: str = "") -> list[str]:
    return [f"{indent}{name:<11}{text}" for name, text in rows.items()]


# --- a model --------------------------------------------------------------------------------------


def _model_text(model: Model) -> str:
    length = "" if model.max_seq_len is None else f", up to {model.max_seq_len:,} tokens"
    active = "" if model.active_parameters == model.parameters else f", {model.active_parameters:,} of them per token"
    sizes = f"{model.num_layers} layers of width {model.embed_dim:,}, a vocabulary of {model.vocab_size:,}{length}"
    lines = [
        f"{model.title}  {model.name}",
        f"{model.model_type}, {sizes}",
        f"{model.parameters:,} parameters{active}",
    ]
    for stack, heading in STACKS.items():
        lines += _stack_lines(getattr(model, stack), heading)
    lines += ["", *_total_lines(model), *_source_lines(model)]
    return "\n".join(lines)


def _stack_lines(layers: Sequence[LayerSpec], heading: str) -> list[str]:
    """Return a stack group by group: the first in full, of the others what is not as in the first."""
    lines: list[str] = []
    first: dict[str, str] = {}
    for layer, numbers in _groups(layers):
        rows = _layer_rows(layer)
        lines += (
            [f"{heading}{_numbered(numbers)}, as layer 0 but for:"]
            if first
            else ["", f"{heading}{_numbered(numbers)}:"]
        )
        lines += _lines({name: text for name, text in rows.items() if first.get(name) != text}, indent="  ")
        first = first or rows
    return lines


def _groups(layers: Sequence[LayerSpec]) -> list[tuple[LayerSpec, list[int]]]:
    """Return equal layers together, with their numbers, in the order in which they first come."""
    groups: dict[LayerSpec, list[int]] = {}
    for number, layer in enumerate(layers):
        groups.setdefault(layer, []).append(number)
    return list(groups.items())


def _numbered(numbers: list[int]) -> str:
    """Return the numbers of layers as one reads them: ``layers 0, 2, … 40``."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    first, second, *_, last = (*numbers, numbers[-1])
    step = second - first
    if len(numbers) > 2 and numbers == list(range(first, last + 1, step)):
        return f"layers {first} to {last}" if step == 1 else f"layers {first}, {second}, … {last}"
    return f"layers {', '.join(map(str, numbers[:-1]))} and {last}"


def _layer_rows(layer: LayerSpec) -> dict[str, str]:
    from polyhead.spec.words import kept as kept_text, learned

    rows = {name: repr(getattr(layer.attention, name)) for name in CHOICES}
    kept = _kept(layer)
    cache = "none, since all tokens come at once" if kept is None else kept_text(kept)
    return {**rows, "cache": cache, "learns": learned(layer.parameter_shapes())}


def _total_lines(model: Model) -> Iterable[str]:
    """Return what all layers that decode keep together, at the model's greatest length."""
    kept = [found for layer in model.layers if (found := _kept(layer)) is not None]
    if kept and model.max_seq_len is not None:
        numbers = sum(found.numbers(model.max_seq_len) for found in kept)
        size = f"{numbers * 2 / 2**30:.2f} GiB in bfloat16"
        yield f"{'cache':<11}{numbers:,} numbers for {model.max_seq_len:,} tokens in all layers, {size}"


def _kept(layer: LayerSpec) -> Retention | None:
    from polyhead.spec import retention

    try:
        return retention(layer.attention, layer.source)
    except SpecError:
        return None


def _source_lines(model: Model) -> Iterable[str]:
    figures: dict[str, list[str]] = {}
    for figure, source in model.sources.items():
        figures.setdefault(source, []).append(figure)
    for number, (source, names) in enumerate(figures.items()):
        yield f"{'' if number else 'sources':<11}{', '.join(names)}: {source}"


def _model_data(model: Model) -> dict[str, Any]:
    skipped = {*STACKS, "config"}
    data = {name: value for name, value in vars(model).items() if name not in skipped}
    groups = [
        {"stack": stack, "layers": numbers, "spec": json.loads(layer.to_json()), "cache": _cache_data(layer)}
        for stack in STACKS
        for layer, numbers in _groups(getattr(model, stack))
    ]
    return data | {"groups": groups}


def _cache_data(layer: LayerSpec) -> dict[str, Any] | None:
    kept = _kept(layer)
    if kept is None:
        return None
    return {"kind": kept.kind, "numbers": kept.row, "left": kept.reach.left, "first": kept.reach.first}
