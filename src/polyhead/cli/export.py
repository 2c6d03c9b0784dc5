"""`polyhead export`: the dashboard's page as one file that needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from polyhead.dashboard.answers import Dashboard

FILE = click.Path(dir_okay=False, path_type=Path)
SCREENS = ("compare", "matrix", "compose", "plan", "measure", "learn")
MODEL_ONLY = ("text", "second_text", "layer", "bare")


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True))
@click.option("--screen", type=click.Choice(SCREENS), default="compare", show_default=True, help="What is shown first.")
@click.option("--token", help="The query token: its text or position.  [default: cat; elsewhere the last]")
@click.option("--tensors", type=FILE, help="Your arrays: .npz or .safetensors with query, key, value.")
@click.option("--model", help="A checkpoint directory, a GGUF file, or smollm2.")
@click.option("--text", help="What the model reads.")
@click.option("--second-text", help="A text whose keys and values cross-attention (#4) attends to.")
@click.option("--layer", type=click.IntRange(0), default=0, show_default=True, help="The model's layer.")
@click.option("--head", type=click.IntRange(0), default=0, show_default=True, help="The query head shown.")
@click.option("--bare", is_flag=True, help="The textbook's form, not the model's own spec.")
@click.option("--plan-model", help="What is planned for: a model of the catalogue.")
@click.option("--plan-context", type=click.IntRange(1), help="Tokens of each sequence there.")
@click.option("--plan-device", help="The device there, of the catalogue.")
@click.option("--records", "records", multiple=True, type=FILE, help="A record of polyhead bench; may be repeated.")
def command(file: Path, **options: Any) -> None:
    """Write the dashboard's page as one file, which shows what it was written for without any server.

    What the page may ask for one step from there is answered in the file too: the shared example with each of its
    controls, tokens and mechanisms; of arrays and models what is shown. FILE - is stdout.

    \b
    Examples:
      polyhead export page.html
      polyhead export head.html --model smollm2 --text "The cat sat on the mat" --layer 12 --head 3 --screen matrix
      polyhead export plan.html --screen plan --plan-model llama-3-8b --plan-device a100-80
    """
    from polyhead.cli.common import make_board, progress, write_file, writing

    board = make_board("polyhead export", options["model"], options["tensors"], options["records"])
    from polyhead.dashboard.export import export

    source = _source(board, options)
    if options["model"]:
        with progress(f"Reading with {options['model']}"):
            board.model.load()
    with progress("Asking all that the page may ask"):
        page = export(board, _state(board, source, options))
    with writing("FILE", file):
        write_file(file, page)
    click.echo(f"polyhead: wrote {file}, {len(page.encode()) / 1e6:.1f} MB", err=True)


def _source(board: Dashboard, options: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared on, as it is asked for."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    given = [name for name in (*MODEL_ONLY, "head") if context.get_parameter_source(name) is not default]
    if options["model"] and options["tensors"]:
        raise click.UsageError("--model and --tensors are two inputs; give one of them")
    if options["model"]:
        if options["text"] is None:
            raise click.UsageError('--model needs a text to read; add --text "The cat sat on the mat"')
        return {"kind": "text", **{name: options[name] for name in (*MODEL_ONLY, "head")}}
    if extra := [name for name in given if name != "head" or not options["tensors"]]:
        raise click.UsageError(f"--{extra[0].replace('_', '-')} goes with --model; add --model smollm2, for example")
    return {**board.state["matrix"]["source"], **({"head": options["head"]} if options["tensors"] else {})}


def _state(board: Dashboard, source: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows."""
    import msgspec

    from polyhead.dashboard import planning
    from polyhead.dashboard.comparing import comparison_of
    from polyhead.dashboard.export import checked
    from polyhead.dashboard.requests import Comparison

    begun = board.state
    matrix = {**begun["matrix"], "source": source}
    token = None
    if options["token"] is not None:
        token = comparison_of(msgspec.convert(matrix, Comparison), board.sources).position(options["token"])
    asked = {name: options[f"plan_{name}"] for name in ("model", "context", "device")}
    asked = {name: value for name, value in asked.items() if value is not None}
    plan = {**begun["plan"], **asked}
    state = {**begun, "screen": options["screen"], "token": token, "matrix": matrix, "plan": plan}
    if asked:
        planning.plan(checked(state).plan)  # raises, where the page would only be without it
    return state
