"""`polyhead serve`: the dashboard, in a browser on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import click

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What tells NumPy's and torch's libraries, before they are imported, how many threads a computation may take."""

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8010, show_default=True, help="The port; 0 is any free.")
@click.option("--model", help="What reads texts: a checkpoint directory, a GGUF file, or smollm2.")
@click.option("--tensors", type=FILE, help="Arrays to begin with: .npz or .safetensors with query, key, value.")
@click.option("--records", "records", multiple=True, type=FILE, help="A record of polyhead bench; may be repeated.")
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
def command(
    host: str, port: int, model: str | None, tensors: Path | None, records: tuple[Path, ...], opens: bool
) -> None:
    """Serve the dashboard: compare, compose, plan, measure and learn, on one page.

    It answers this machine alone, and needs no network. A model's weights are read while the page is already there.

    \b
    Examples:
      polyhead serve
      polyhead serve --model smollm2 --open
      polyhead serve --tensors qkv.npz --port 0
      polyhead serve --records mine.json
    """
    # As many requests as there are processors are computed at a time. If each also took a thread for each processor,
    # they would wait for one another: on two busy processors a sentence of 0.2 s then took several seconds.
    for name in THREADS:
        os.environ.setdefault(name, "1")
    from polyhead.cli.common import make_board

    board = make_board("polyhead serve", model, tensors, records)
    from polyhead.dashboard.serve import listen, serve, url_of

    try:
        opened = listen(host, port)
    except (OSError, UnicodeError) as error:  # the latter where the host is no name
        reason = getattr(error, "strerror", None) or error
        raise click.BadParameter(
            f"cannot listen on {host}, port {port}: {reason}; give another --port, or 0 for any that is free",
            param_hint=["--host", "--port"],
        ) from None
    url = url_of(opened, host)

    def ready() -> None:
        click.echo(f"polyhead: {url} (Ctrl-C ends it)")
        if opens:
            click.launch(url)

    with opened:
        serve(board, opened, host, ready=ready)
