"""`polyhead completion`: the shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Examples:
      eval "$(polyhead completion bash)"
      polyhead completion zsh > ~/.zfunc/_polyhead
      polyhead completion fish > ~/.config/fish/completions/polyhead.fish
    """
    root = click.get_current_context().find_root().command
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, "polyhead", "_POLYHEAD_COMPLETE").source())
