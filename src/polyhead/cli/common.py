"""What several commands do: reading a spec, writing to a terminal or a pipe, saying what takes long."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyhead.errors import CheckpointError, SpecError, UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

    from polyhead.spec import AttentionSpec

PIPE_WIDTH = 200
"""Columns where there is no terminal to ask, so that tables in a pipe are not wrapped."""


def console(*, stderr: bool = False) -> Console:
    """Return the console for data (stdout) or progress (stderr); plain text where NO_COLOR or a pipe asks for it."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        width=None if stream.isatty() else PIPE_WIDTH,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
    )


@contextmanager
def progress(text: str) -> Iterator[None]:
    """Show on stderr, if that is a terminal, what is being waited for."""
    if not sys.stderr.isatty():
        yield
        return
    with console(stderr=True).status(text):
        yield


def read_spec(text: str) -> AttentionSpec:
    """Read a spec as every command takes it.

    Args:
        text: A mechanism's name, ``MODEL:LAYER``, or a JSON file's path.

    Returns:
        The spec.

    Raises:
        UnknownNameError: If it is none of these.
        SpecError: If the file holds no spec.
        CheckpointError: If the model is missing or broken.
    """
    from polyhead.catalog import mechanism

    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        return read_spec_file(path)
    model, colon, layer = text.rpartition(":")
    if colon and layer.isdecimal():
        return _model_spec(model, int(layer))
    try:
        return mechanism(text).spec
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} (a spec may also be MODEL:LAYER or a JSON file)") from None


def read_spec_file(path: Path) -> AttentionSpec:
    """Return the spec in a JSON file; raises SpecError where it holds none, CheckpointError where it cannot be read."""
    from polyhead.spec import AttentionSpec

    text = read_text(path)
    try:
        return AttentionSpec.from_json(text)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


def read_text(path: Path) -> str:
    """Return a text file's content; raises CheckpointError where it is missing or no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CheckpointError(f"cannot read {path}: {reason}") from None


def write_file(path: Path, text: str) -> None:
    """Write a file whole or not at all; ``-`` is stdout."""
    if str(path) == "-":
        click.echo(text, nl=not text.endswith("\n"))
        return
    from polyhead.files import write_whole

    write_whole(path, text.encode())


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Say of a file that cannot be written which option named it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise click.BadParameter(f"cannot write {path}: {reason}; give another path", param_hint=option) from None


def _model_spec(model: str, layer: int) -> AttentionSpec:
    from polyhead.catalog.hf_config import layer_specs, read_config
    from polyhead.hf.load import locate

    layers = layer_specs(read_config(locate(model)))
    if layer >= len(layers):
        raise UnknownNameError(f"{model} has layers 0 to {len(layers) - 1}, and {layer} was asked for")
    return layers[layer].attention
