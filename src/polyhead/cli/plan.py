"""`polyhead plan`: which attention for a model, a context and a device, what it costs, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from polyhead.planner import Plan, Stack
    from polyhead.planner.fits import Fit

TASKS = ("generate", "retrieve", "stream", "encode", "translate", "train")
OBJECTIVES = ("latency", "throughput", "memory")
ASKED = ("context", "batch")
GIB = 2**30


@click.command("plan", epilog="Exit code 1: nothing fits, or nothing can do the task.")
@click.option("--model", "-m", required=True, help="A model of the catalogue, a config.json, or its directory.")
@click.option("--context", type=int, help="Tokens of each sequence.  [default: the model's own longest]")
@click.option("--batch", type=int, default=1, show_default=True, help="Number of sequences at once.")
@click.option("--device", help="A device of the catalogue, or a file.  [default: this machine]")
@click.option("--devices", type=int, default=1, show_default=True, help="Devices that share heads and matrices.")
@click.option("--task", type=click.Choice(TASKS), help="What the model does.  [default: what it is for]")
@click.option("--written", type=int, help="Tokens of the context that are written one by one.  [default: the task's]")
@click.option("--precision", help="One format, or such as weights=int4,cache=fp8.  [default: bf16]")
@click.option("--optimise", type=click.Choice(OBJECTIVES), help="What is made least.  [default: the task's]")
@click.option("--from-scratch", is_flag=True, help="The model is still to be trained; training always is.")
@click.option("--window", type=int, default=4096, show_default=True, help="Tokens of a window, where one is tried.")
@click.option("--what-fits", type=click.Choice(ASKED), help="Say how long a context, or how large a batch, fits.")
@click.option("--top", type=click.IntRange(1), default=8, show_default=True, help="Stacks that are printed.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw memory and time, as .png or .svg.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every stack.")
def command(
    model: str,
    context: int | None,
    what_fits: str | None,
    top: int,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which attention a model should have, for a context on a device: storage, position, pattern and weighting.

    Every legal combination is priced in bytes, operations and seconds; what does not fit is dropped, and the rest is
    ranked, the model's own beside it. What a change costs in quality is quoted, with its source. Times are the least
    possible at a device's published rates; on this machine, after polyhead calibrate, about what they are.

    \b
    Examples:
      polyhead plan --model llama-3-8b --context 131072 --device a100-80
      polyhead plan --model my-model/ --context 32768 --device rtx-4090 --precision weights=int4,cache=fp8
      polyhead plan --model llama-3-70b --context 8192 --device h100 --devices 4 --batch 32
      polyhead plan --model llama-3-8b --task train --context 8192 --device h100 --devices 8
      polyhead plan --model llama-3-8b --what-fits context --device rtx-4090
    """
    from polyhead.cli.common import progress
    from polyhead.planner import plan
    from polyhead.planner.fits import what_fits as find

    if what_fits is not None:
        unused = {"--plot": plot is not None, "--optimise": options["optimise"] is not None}
        unused["--context"] = what_fits == "context" and context is not None
        if names := [name for name, is_given in unused.items() if is_given]:
            raise click.UsageError(f"{', '.join(names)} says nothing beside --what-fits {what_fits}; leave it out")
        with progress(f"pricing stacks of {model} ..."):
            fits = find(model, what_fits, context=context, **options)
        _print_fits(fits, what_fits, as_json=as_json)
        return
    if plot is not None:
        _check_plot(plot)
    with progress(f"pricing stacks of {model} ..."):
        answer = plan(model, context=context, **options)
    _show(answer, top, as_json=as_json)
    if plot is not None:
        _draw(answer, plot)
    if answer.best is None:
        click.get_current_context().exit(1)


def _check_plot(path: Path) -> None:
    from polyhead.cli.common import writing
    from polyhead.files import check_plot, check_writable

    check_plot(path)
    with writing("--plot", path):
        check_writable(path)


def _draw(found: Plan, path: Path) -> None:
    from polyhead.cli.common import writing
    from polyhead.planner.plot import draw

    with writing("--plot", path):
        draw(found, path)


def _show(found: Plan, top: int, *, as_json: bool) -> None:
    from rich.text import Text

    from polyhead.cli.common import console
    from polyhead.planner.data import to_data
    from polyhead.planner.words import changes, sentences

    if as_json:
        click.echo(json.dumps(to_data(found), indent=2, ensure_ascii=False))
        return
    out, load = console(), found.load
    several = "" if load.devices == 1 else f"{load.devices} × "
    batch = "" if load.batch == 1 else f", {load.batch} sequences"
    out.print(
        Text(
            f"{found.model.title}, {load.context:,} tokens{batch}, on {several}{found.device.title}, {load.precision}: "
            f"{load.what}; ranked for {found.objective}"
        )
    )
    out.print()
    answer, *others = sentences(found)
    out.print(Text(answer, style="bold"))
    out.print()
    if found.stacks or found.dropped:
        _print_stacks(out, found, top)
        out.print()
    for sentence in others:
        out.print(Text(sentence))
    if found.stacks or found.dropped:
        out.print()
        out.print(Text("Changing one choice:", style="bold"))
    for sentence in changes(found):
        out.print(Text(sentence))


def _print_stacks(out: Console, found: Plan, top: int) -> None:
    from rich.table import Table

    shown = found.ranked(top)
    shown += [stack for stack in (found.own, *found.dropped) if stack is not None and stack not in shown]
    shown = shown[: max(top, 1 + len(found.ranked(top)))]
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = _columns(found)
    for heading in columns:
        table.add_column(heading, justify="left" if heading in {"stack", "needs", "fits"} else "right", overflow="fold")
    for stack in shown:
        table.add_row(*(cell(stack) for cell in columns.values()), style="dim" if stack.over else None)
    out.print(table)


def _columns(found: Plan) -> dict[str, Callable[[Stack], str]]:
    """Return headings and cells, but for those in which nothing would stand."""

    def time(seconds: float | None) -> str:
        return "" if seconds is None else f"{seconds:,.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"

    every = (*found.stacks, *found.dropped)
    step = {"train": "a step", "encode": "one pass"}.get(found.load.task.name, "prompt")
    columns: dict[str, Callable[[Stack], str]] = {
        "stack": lambda stack: stack.name + (" (its own)" if stack is found.own and found.is_trained else ""),
        "cache GiB": lambda stack: f"{stack.memory.cache.ideal / GIB:,.2f}",
        "in all GiB": lambda stack: f"{stack.memory.total / GIB:,.1f}",
        "sequences": lambda stack: str(stack.batch),
        step: lambda stack: time(None if stack.prompt is None else stack.prompt.total),
        "a token": lambda stack: time(None if stack.token is None else stack.token.total),
        "must be worth": lambda stack: f"{stack.score / stack.objective:,.3g} ×",
        "needs": lambda stack: stack.way.needs,
        "fits": lambda stack: f"{stack.over / GIB:,.1f} GiB too large" if stack.over else "",
    }
    empty = {
        "cache GiB": not any(stack.memory.cache.ideal for stack in every),
        "sequences": found.objective != "throughput",
        step: not any(stack.prompt for stack in every),
        "a token": not any(stack.token for stack in every),
        "fits": not found.dropped,
    }
    return {heading: cell for heading, cell in columns.items() if not empty.get(heading)}


def _print_fits(found: Sequence[Fit], asked: str, *, as_json: bool) -> None:
    from rich.table import Table

    from polyhead.cli.common import console
    from polyhead.planner.data import fits_data

    if as_json:
        click.echo(json.dumps(fits_data(asked, found), indent=2, ensure_ascii=False))
    else:
        heading = "longest context" if asked == "context" else "largest batch"
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("stack", heading, "cache GiB", "in all GiB", "note"):
            table.add_column(name, justify="left" if name in {"stack", "note"} else "right", overflow="fold")
        for number, fit in enumerate(found):
            largest = f"{fit.largest:,}" if fit.is_bounded else "any"
            name = fit.variant.name + (" (as it is)" if not number and fit.is_trained else "")
            table.add_row(name, largest if fit.largest else "none", *_sizes(fit), fit.note)
        console().print(table)
    if not any(fit.largest for fit in found):
        click.echo(f"polyhead: nothing fits: {found[0].note}", err=True)
        click.get_current_context().exit(1)


def _sizes(fit: Fit) -> tuple[str, str]:
    if fit.memory is None:
        return "", ""
    return f"{fit.memory.cache.ideal / GIB:,.2f}", f"{fit.memory.total / GIB:,.1f}"
