"""`polyhead serve`: the dashboard, in a browser on this machine."""

from __future__ import annotations

import click


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8010, show_default=True, help="The port; 0 is any free.")
@click.option("--model", help="What reads texts: a checkpoint directory, a GGUF file, or smollm2.")
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
def command(host: str, port: int, model: str | None, opens: bool) -> None:
    """Serve the dashboard: compare, compose, plan, measure and learn, on one page.

    It answers this machine alone, and needs no network. A model's weights are read while the page is already there.

    \b
    Examples:
      polyhead serve
      polyhead serve --model smollm2 --open
      polyhead serve --port 0
    """
    from polyhead.errors import require_extra

    for module in ("starlette", "uvicorn", "msgspec"):
        require_extra(module, "serve", "polyhead serve")
    from polyhead.dashboard.answers import Dashboard
    from polyhead.dashboard.model import check_model
    from polyhead.dashboard.serve import listen, serve, url_of

    if model is not None:
        check_model(model)
    try:
        opened = listen(host, port)
    except OSError as error:
        reason = error.strerror or error
        raise click.BadParameter(
            f"cannot listen on {host}:{port}: {reason}; give another port, or 0 for any that is free",
            param_hint="--port",
        ) from None
    url = url_of(opened, host)

    def ready() -> None:
        click.echo(f"polyhead: {url} (Ctrl-C ends it)")
        if opens:
            click.launch(url)

    with opened:
        serve(Dashboard.of(model), opened, host, ready=ready)
