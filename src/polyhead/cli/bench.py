"""`polyhead bench`: what each mechanism costs on this machine, beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyhead.errors import UnsupportedError

if TYPE_CHECKING:
    from polyhead.bench import Case, Record

DTYPES = ("float64", "float32", "bfloat16", "float16")


@click.command("bench", epilog="Exit code 1: something timed does not compute what it should.")
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option("--list", "listed", is_flag=True, help="List the cases and their peers, and time nothing.")
@click.option(
    "--quick", is_flag=True, help="A first table in under 90 seconds: fewer cases, shorter inputs, no targets."
)
@click.option(
    "--memory", is_flag=True, help="Measure peak memory too, of ours and the base, in processes of their own."
)
@click.option("--threads", type=click.IntRange(1), help="Threads to compute with.  [default: as many as torch takes]")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Dtype of the tensors.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help="When to stop waiting for a quiet machine, for each case.  [default: 20, or 2 with --quick]",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write JSON with every turn; - is stdout.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw time against length, as .png or .svg.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="Time all peers, or the base alone.")
def command(
    cases: tuple[str, ...],
    listed: bool,
    quick: bool,
    memory: bool,
    threads: int | None,
    dtype: str,
    seconds: float | None,
    json_path: Path | None,
    plot_path: Path | None,
    peers: bool,
) -> None:
    """Time mechanisms on this machine beside PyTorch's attention, FlexAttention and other people's layers.

    Ours and its peers take turns, and what counts is the turns in which the machine was quiet. Nothing is timed that
    does not agree with the oracle first. Without CASE the whole documented set is timed, which takes many minutes.

    \b
    Examples:
      polyhead bench --list
      polyhead bench --quick
      polyhead bench window linear --threads 2 --plot growth.png
      polyhead bench full --memory --json full.json
    """
    from polyhead.bench.harness import run, selected
    from polyhead.cli.common import write_file, writing

    chosen = selected(cases or None, quick=quick)
    if listed:
        _list(chosen)
        return
    if plot_path is not None:
        from polyhead.bench.plot import check_plot

        check_plot(plot_path)
        if not any(one.lengths for one in chosen):
            there = ", ".join(one.name for one in selected(quick=quick) if one.lengths)
            raise UnsupportedError(f"--plot draws cases that are timed at several lengths; add one of {there}")
    record = run(
        cases or None,
        quick=quick,
        peers=peers,
        dtype=dtype,
        threads=threads,
        seconds=seconds,
        memory=memory,
        progress=lambda text: click.echo(text, err=True),
    )
    if json_path is not None:
        with writing("--json", json_path):
            write_file(json_path, record.to_json())
    if str(json_path) != "-":
        _print(record)
    if plot_path is not None:
        from polyhead.bench.plot import draw

        with writing("--plot", plot_path):
            draw(record, plot_path)
    if record.failures:
        for name, reason in record.failures.items():
            click.echo(f"polyhead: {name} failed: {reason}", err=True)
        click.get_current_context().exit(1)


def _list(cases: list[Case]) -> None:
    from rich.table import Table

    from polyhead.cli.common import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("case", "what", "direction", "keys", "peers, the base first"):
        table.add_column(heading, justify="right" if heading == "keys" else "left", overflow="fold")
    for one in cases:
        lengths = f"{one.length}" + (f" ({one.lengths[0]}–{one.lengths[-1]})" if one.lengths else "")
        table.add_row(one.name, one.title, one.direction, lengths, ", ".join(one.peers))
    console().print(table)


def _print(record: Record) -> None:
    from rich.table import Table
    from rich.text import Text

    from polyhead.bench.records import HEADINGS
    from polyhead.cli.common import console

    out = console()
    out.print(Text(f"{record.machine}, {record.dtype}"))
    out.print(Text(record.ceiling_line(), style="dim"))
    out.print()
    table = Table(box=None, pad_edge=False, header_style="bold")
    left = {"case", "kernel", "against", "target"}
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in left else "right", overflow="fold")
    for line in record.lines():
        style = "red" if "not met" in line.target else "green" if line.target.endswith(" met") else ""
        table.add_row(*(Text(text, style=style if name == "target" else "") for name, text in line._asdict().items()))
    out.print(table)
    for note in record.notes():
        out.print(Text(note, style="dim"))
