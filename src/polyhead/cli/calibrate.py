"""`polyhead calibrate`: this machine's rates, and what polyhead reaches of them, for the planner."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("calibrate", epilog="Next: polyhead plan --model NAME --precision float32 tells times on this machine.")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(1), help="Threads to compute with.  [default: as many as torch takes]")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="How long to measure each of six things.",
)
def command(file: Path | None, threads: int | None, seconds: float) -> None:
    """Measure what this machine computes and reads in a second, and what polyhead reaches of that.

    It writes a device file, which polyhead plan reads by itself where no --device is named, or as --device FILE. FILE
    is where to write it; - is stdout.

    \b
    Examples:
      polyhead calibrate
      polyhead calibrate laptop.json --threads 4
    """
    from polyhead.bench.calibrate import calibrate
    from polyhead.catalog.device import calibrated_file
    from polyhead.cli.common import write_file, writing
    from polyhead.files import check_writable

    path = calibrated_file() if file is None else file
    if file is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    if str(path) != "-":
        with writing("FILE", path):
            check_writable(path)
    device = calibrate(threads=threads, seconds=seconds, progress=lambda text: click.echo(f"{text} ...", err=True))
    with writing("FILE", path):
        write_file(path, device.to_json())
    if str(path) != "-":
        click.echo(device.summary())
        click.echo(f"written to {path}")
