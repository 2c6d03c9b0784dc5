"""The entry point: which commands there are, and what becomes of an error."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

import click

from polyhead.errors import MissingExtraError, PolyheadError

COMMANDS = {
    "list": "List the fifteen mechanisms, or published models.",
    "show": "Explain one mechanism, a model layer by layer, or a spec.",
    "compare": "Run all fifteen on one input: the example, your arrays, or a real model's heads.",
    "explain": "Say which kernel runs a spec at given sizes, and why not the others.",
    "plan": "Say which attention fits a model, a context and a device, and why.",
    "serve": "Serve the dashboard: compare, compose, plan, measure and learn, on one page.",
    "export": "Write the dashboard's page as one file that needs no server.",
    "tables": "Print what the fifteen cost, how they pull, and what they keep, at sizes of your own.",
    "generate": "Let a model go on with a text, through polyhead's attention.",
    "bench": "Time mechanisms on this machine, beside PyTorch's attention and other people's layers.",
    "calibrate": "Measure this machine, so that plan can tell times on it.",
    "completion": "Print the completion script for bash, zsh or fish.",
}
"""Each command and its line in the help, here so that the help imports none of them."""

EXTRAS = {
    "torch": ("torch",),
    "hf": ("torch", "transformers", "gguf", "accelerate"),
    "numba": ("torch", "numba"),
    "plot": ("matplotlib",),
    "serve": ("starlette", "uvicorn", "msgspec"),
    "bench": ("transformers", "matplotlib", "x-transformers", "fla-core"),
}
"""The packages whose presence makes an extra."""


class Commands(click.Group):
    """A group that imports a command when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command, or return None if there is none of that name."""
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"polyhead.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda c, p, v: _version(c, v),
    help="Show the version and the extras found.",
)
def cli() -> None:
    """Attention mechanisms as four choices: what is stored, how position enters, which pairs meet, how scores weigh.

    \b
    Examples:
      polyhead list                                  the fifteen
      polyhead show gqa                              one of them, explained
      polyhead compare                               all of them on the textbook's example
      polyhead compare --model smollm2 --text "The cat sat on the mat"
      polyhead explain gqa --q-len 1 --kv-len 8192   which kernel runs it
      polyhead generate smollm2 "The capital of France is"
      polyhead bench --quick                         what they cost on this machine
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Exit codes: 0 done; 1 a negative answer; 2 wrong usage or input; 3 a missing extra; 130 interrupted.

    Args:
        args: The arguments. None: the process's own.
    """
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> int:
    try:
        return int(cli.main(args, prog_name="polyhead", standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("polyhead: interrupted", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MissingExtraError as error:
        click.echo(f"polyhead: {error}", err=True)
        return 3
    except SystemExit as stop:  # click's end of a completion, and of a run whose reader has seen enough (head)
        return int(stop.code or 0) if "_POLYHEAD_COMPLETE" in os.environ else 0
    except (PolyheadError, OSError) as error:
        click.echo(f"polyhead: {error}", err=True)
        return 2


def _version(ctx: click.Context, asked: bool) -> None:
    if asked:
        click.echo(version_text())
        ctx.exit()


def version_text() -> str:
    """Return the version, and which extras are there with which versions."""
    try:
        found = [f"polyhead {metadata.version('polyhead')}"]
    except metadata.PackageNotFoundError:
        found = ["polyhead, not installed: run from its source"]
    for extra, packages in EXTRAS.items():
        try:
            versions = [f"{package} {metadata.version(package)}" for package in packages]
        except metadata.PackageNotFoundError as missing:
            found.append(f"  {extra:<6} no, {missing.name} is missing: pip install 'polyhead[{extra}]'")
        else:
            found.append(f"  {extra:<6} {', '.join(versions)}")
    return "\n".join(found)
