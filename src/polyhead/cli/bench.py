"""`polyhead bench`: what each mechanism costs on this machine, beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyhead.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from rich.table import Table

    from polyhead.bench import Case, Record
    from polyhead.bench.records import Line

DTYPES = ("float32", "float64", "bfloat16", "float16")

WIDE = 132
"""Columns from which a case and its peers fit into lines of one table."""

NARROW = {"ours": 8, "against": None, "theirs": 8, "ratio": 19, "target": 14}
"""The fields below a case's own line where there are fewer columns, and their widths."""

LEFT = {"case", "kernel", "against", "target"}
"""The fields that are words."""


@click.command("bench", epilog="Exit code 1: something timed does not compute what it should.")
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option("--list", "listed", is_flag=True, help="List the cases and their peers, and time nothing.")
@click.option("--decode", "decoding", is_flag=True, help="Take the set of decoding: a token after a cache.")
@click.option("--check-plan", is_flag=True, help="Hold what polyhead plan predicts for SmolLM2 against what it takes.")
@click.option(
    "--quick", is_flag=True, help="A first table in under 90 seconds: fewer cases, shorter inputs, no targets."
)
@click.option(
    "--memory", is_flag=True, help="Measure peak memory too, of ours and the base, each in a process of its own."
)
@click.option("--threads", type=click.IntRange(1), help="Threads to compute with.  [default: as many as torch takes]")
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Dtype of the tensors.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help="When to stop waiting for a quiet machine, for each case.  [default: 20, or 1.5 with --quick]",
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write JSON with every turn; - is stdout.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw time against length, as .png or .svg.")
@click.option("--peers/--no-peers", default=True, show_default=True, help="Time all peers, or the base alone.")
def command(
    cases: tuple[str, ...],
    listed: bool,
    decoding: bool,
    check_plan: bool,
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
      polyhead bench --decode --threads 2
      polyhead bench --check-plan --threads 2
      polyhead bench window linear --threads 2 --plot growth.png
      polyhead bench full --memory --json full.json
    """
    from polyhead.bench.harness import Interrupted, run, selected

    if check_plan:
        if cases or listed or decoding or quick or memory or plot_path is not None:
            raise click.UsageError("--check-plan is a set of its own; only --threads, --seconds and --json go with it")
        _check_plan(threads, seconds, json_path)
        return
    chosen = selected(cases or None, quick=quick, decoding=decoding)
    if listed:
        _list(chosen)
        return
    _check_files(json_path, plot_path)
    if plot_path is not None and not any(one.lengths for one in chosen):
        there = ", ".join(one.name for one in selected(quick=quick) if one.lengths)
        raise UnsupportedError(f"--plot draws cases that are timed at several lengths; add one of {there}")
    try:
        record = run(
            cases or None,
            quick=quick,
            peers=peers,
            dtype=dtype,
            threads=threads,
            seconds=seconds,
            memory=memory,
            decoding=decoding,
            progress=lambda text: click.echo(text, err=True),
        )
    except Interrupted as stop:
        if str(json_path) != "-":
            _print(stop.record)
        click.echo(f"polyhead: {len(stop.record.rows)} of {len(chosen)} cases were timed; no file is written", err=True)
        raise
    _write(record, json_path, plot_path)
    for name, reason in record.failures.items():
        click.echo(f"polyhead: {name} failed: {reason}", err=True)
    if record.failures:
        click.get_current_context().exit(1)


def _check_plan(threads: int | None, seconds: float | None, json_path: Path | None) -> None:
    """Calibrate, time SmolLM2, and print what was predicted beside what was measured."""
    import json

    from polyhead.bench.calibrate import calibrate, check_plan, table
    from polyhead.bench.timer import computing_with
    from polyhead.cli.common import write_file, writing

    def progress(text: str) -> None:
        click.echo(f"{text} ...", err=True)

    _check_files(json_path, None)
    with computing_with(threads):
        record = check_plan(calibrate(progress=progress), seconds=seconds or 20.0, progress=progress)
    if str(json_path) != "-":
        click.echo(table(record))
    if json_path is not None:
        with writing("--json", json_path):
            write_file(json_path, json.dumps(record, indent=2))


def _check_files(json_path: Path | None, plot_path: Path | None) -> None:
    """Refuse a file that cannot be written before anything is timed, for minutes."""
    from polyhead.cli.common import writing
    from polyhead.files import check_writable

    if plot_path is not None:
        from polyhead.files import check_plot

        check_plot(plot_path)
    for option, path in (("--json", json_path), ("--plot", plot_path)):
        if path is not None and str(path) != "-":
            with writing(option, path):
                check_writable(path)


def _write(record: Record, json_path: Path | None, plot_path: Path | None) -> None:
    from polyhead.cli.common import write_file, writing

    if str(json_path) != "-":
        _print(record)
    if json_path is not None:
        with writing("--json", json_path):
            write_file(json_path, record.to_json())
    if plot_path is not None:
        from polyhead.bench.plot import draw, grown

        if not grown(record):
            click.echo(f"polyhead: {plot_path} is not written: no case was timed at two lengths", err=True)
            return
        with writing("--plot", plot_path):
            draw(record, plot_path)


def _list(cases: list[Case]) -> None:
    from rich.table import Table

    from polyhead.cli.common import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("case", "what", "direction", "keys", "peers, the base first"):
        justify: Literal["left", "right"] = "right" if heading == "keys" else "left"
        table.add_column(heading, justify=justify, no_wrap=heading == "case", overflow="fold")
    for one in cases:
        lengths = f"{one.length}" + (f" ({one.lengths[0]}–{one.lengths[-1]})" if one.lengths else "")
        table.add_row(one.name, one.title, one.direction, lengths, ", ".join(one.peers))
    console().print(table)


def _print(record: Record) -> None:
    from rich.text import Text

    from polyhead.bench.records import lines_of
    from polyhead.cli.common import console

    out = console()
    out.print(Text(f"{record.machine}, {record.dtype}"))
    out.print(Text(f"{record.ceilings}", style="dim"))
    out.print()
    if out.width >= WIDE:
        out.print(_table(record.lines()))
    for number, row in enumerate(record.rows if out.width < WIDE else ()):
        first, *others = lines_of(row)
        reached = f", {first.ceiling} of the ceiling" if first.ceiling else ""
        out.print(Text(f"{row.case}, {row.kv_len} keys, on {row.kernel}{reached}"))
        out.print(_table([first, *others], NARROW, header=number == 0))
    for note in record.notes():
        out.print(Text(note, style="dim"))


def _table(lines: Iterable[Line], widths: Mapping[str, int | None] | None = None, *, header: bool = True) -> Table:
    """Return lines as a table, of all fields or of those that have a width."""
    from rich.table import Table
    from rich.text import Text

    from polyhead.bench.records import HEADINGS

    fields = HEADINGS._fields if widths is None else tuple(widths)
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header, expand=widths is not None)
    for field in fields:
        justify: Literal["left", "right"] = "left" if field in LEFT else "right"
        width = None if widths is None else widths[field]
        ratio = 1 if widths is not None and width is None else None
        table.add_column(getattr(HEADINGS, field), justify=justify, overflow="fold", width=width, ratio=ratio)
    for line in lines:
        style = "red" if "not met" in line.target else "green" if line.target.endswith(" met") else ""
        table.add_row(*(Text(getattr(line, field), style=style if field == "target" else "") for field in fields))
    return table
