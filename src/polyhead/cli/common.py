"""What several commands do: reading a spec, writing to a terminal or a pipe, saying what takes long."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from polyhead.errors import CheckpointError, SpecError, UnknownNameError, require_extra, unknown_name

if TYPE_CHECKING:
    from rich.console import Console

    from polyhead.catalog import Model
    from polyhead.dashboard.answers import Dashboard
    from polyhead.spec import AttentionSpec, LayerSpec

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


def read_model(text: str) -> Model | None:
    """Read a whole model, if a text names one.

    Args:
        text: A published model's name, or the path of a config.json or of its directory.

    Returns:
        The model, or None if the text names none of these.

    Raises:
        CheckpointError: If the config.json is broken.
        UnsupportedError: If it cannot be expressed.
    """
    from polyhead.catalog import hf_config, model

    try:
        return model(text)
    except UnknownNameError:
        return hf_config(text) if _holds_config(Path(text)) else None


def _holds_config(path: Path) -> bool:
    """Whether a path is a config.json, under whatever name, or its directory."""
    if path.is_dir() or not path.is_file():
        return (path / "config.json").is_file()
    if path.name == "config.json":
        return True
    try:
        data = json.loads(read_text(path))
    except ValueError:  # whoever reads it as a spec says what is wrong
        return False
    return isinstance(data, dict) and "model_type" in data


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
    from polyhead.catalog import mechanism, mechanisms, models

    path = Path(text)
    if path.suffix == ".json" or path.is_file():
        return read_spec_file(path)
    model, colon, layer = text.rpartition(":")
    if colon and layer.isdecimal():
        return _layer_of(model, int(layer)).attention
    try:
        return mechanism(text).spec
    except UnknownNameError:
        names = [*(entry.name for entry in mechanisms()), *(entry.name for entry in models())]
    if text in names:
        raise UnknownNameError(f"{text} is a model, and its layers may differ; name one, such as {text}:0")
    raise UnknownNameError(
        f"{unknown_name('mechanism or model', text, names)} (a spec may also be MODEL:LAYER or a JSON file)"
    )


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


def make_board(purpose: str, model: str | None, tensors: Path | None, records: Sequence[Path]) -> Dashboard:
    """Return what answers the dashboard's page, checked but for a model's weights, which are not loaded yet.

    Args:
        purpose: The command, for the message where its extra is missing.
        model: What reads texts, or None.
        tensors: Arrays to begin with, or None.
        records: Measurements to show before the project's own.

    Returns:
        The dashboard.

    Raises:
        MissingExtraError: If what it needs is not installed.
        CheckpointError: If a model or a record is missing or broken.
        ShapeError: If the arrays are none that a comparison takes.
    """
    for module in ("starlette", "uvicorn", "msgspec"):
        require_extra(module, "serve", purpose)
    from polyhead.dashboard.answers import Dashboard
    from polyhead.dashboard.model import check_model
    from polyhead.dashboard.records import read_record

    if model is not None:
        check_model(model)
    board = Dashboard.of(model, more_records=[read_record(path) for path in records])
    return board if tensors is None else board.beginning_with(_bytes(tensors), str(tensors))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def _layer_of(model: str, number: int) -> LayerSpec:
    layers = _layers_of(model)
    if number >= len(layers):
        raise UnknownNameError(f"{model} has layers 0 to {len(layers) - 1}, and {number} was asked for")
    return layers[number]


def _layers_of(text: str) -> Sequence[LayerSpec]:
    """Return the layers of a model: a published one, or one whose config.json or checkpoint is on this machine."""
    from polyhead.catalog import models
    from polyhead.catalog.configs import layer_specs, read_config

    known = {model.name: model for model in models()}
    if text in known:
        return known[text].layers
    if _holds_config(Path(text)):
        return layer_specs(read_config(text))
    from polyhead.hf.load import locate

    try:
        return layer_specs(read_config(locate(text)))
    except CheckpointError as error:
        if Path(text).exists() or not difflib.get_close_matches(text, known):
            raise
        raise CheckpointError(f"{error}; {unknown_name('published model', text, known)}") from None
