"""Published models by name, each read from the fields of its config.json."""

from __future__ import annotations

import json

from polyhead.catalog.configs import describe
from polyhead.catalog.model import Model
from polyhead.catalog.published import PUBLISHED, Published
from polyhead.errors import unknown_name


def models() -> tuple[Model, ...]:
    """Return the published models of the catalogue, those of one publisher side by side."""
    return tuple(map(_read, PUBLISHED))


def model(name: str) -> Model:
    """Look a published model up: its attention, layer by layer, and its sizes.

    ::

        ph.model("llama-3-8b").layers[0].attention

    Args:
        name: Its name, in any case, such as ``"llama-3-8b"``; `models` lists them.

    Returns:
        The model.

    Raises:
        UnknownNameError: If none goes by that name; the message names the nearest.
    """
    wanted = name.strip().lower()
    for entry in PUBLISHED:
        if entry.name == wanted:
            return _read(entry)
    raise unknown_name("model", name, [entry.name for entry in PUBLISHED])


def _read(entry: Published) -> Model:
    fields = json.loads(entry.config)
    return describe(fields, name=entry.name, title=entry.title, source=entry.source, sources=entry.sources)
