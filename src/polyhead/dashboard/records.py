"""Measurements that the page shows: the project's own, which come with the package, and those of whoever starts it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from polyhead.bench.data import to_page
from polyhead.bench.records import Record
from polyhead.errors import CheckpointError
from polyhead.page import SCHEMA

FILE = "records.json"
"""The project's own records in one file, which `make docs` writes."""

Named = tuple[str, Record]


def measured() -> tuple[Named, ...]:
    """Return the project's own records, each with its name."""
    text = resources.files("polyhead.dashboard").joinpath(FILE).read_text(encoding="utf-8")
    return tuple((name, Record.from_json(json.dumps(data))) for name, data in json.loads(text).items())


def read_record(path: Path) -> Named:
    """Read a record that ``polyhead bench --json`` wrote.

    Args:
        path: The file.

    Returns:
        The record, named after its file.

    Raises:
        CheckpointError: If the file cannot be read, or is no such record.
    """
    try:
        return path.stem, Record.from_json(path.read_text(encoding="utf-8"))
    except (CheckpointError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {error}; polyhead bench --json writes what is read here") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def records(named: Iterable[Named]) -> dict[str, Any]:
    """Return records as the page shows them; see `polyhead.bench.data.to_page` for their form."""
    return {"schema": SCHEMA, "records": [{"name": name, "record": to_page(record)} for name, record in named]}
