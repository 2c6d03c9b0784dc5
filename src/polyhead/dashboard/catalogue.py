"""What the page knows without asking: mechanisms, models, devices, and the form in which a spec is filled in.

It depends on nothing but the library, so it is built into the page too; a server sends it again, since its own version
and its own state at the start may be others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from polyhead.catalog import EXAMPLE, TEXTBOOK, Mechanism, Model, Settings, devices, mechanisms, models
from polyhead.catalog.controls import flat_from
from polyhead.dashboard.choices import choices
from polyhead.dashboard.exercises import exercises
from polyhead.dashboard.state import defaults
from polyhead.page import SCHEMA, version
from polyhead.planner.asked import OBJECTIVES
from polyhead.planner.tasks import TASKS
from polyhead.spec.composed import parts_of
from polyhead.spec.rules import RULES

PRECISIONS = ("float32", "bf16", "fp16", "fp8", "int8", "weights=int4", "weights=int4,cache=fp8")
"""Formats that are offered; the planner takes any mixture."""


def catalogue(state: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return everything that can be chosen from.

    Args:
        state: What the page shows at first. None: the shared example, and a question to each of its screens.

    Returns:
        JSON-ready data.
    """
    return {
        "schema": SCHEMA,
        "version": version(),
        "mechanisms": [mechanism_data(entry) for entry in mechanisms()],
        "example": {"tokens": list(EXAMPLE.tokens), "token": EXAMPLE.tokens.index(EXAMPLE.token)},
        "models": [model_data(one) for one in models()],
        "devices": [{"name": one.name, "title": one.title, "memory": one.memory} for one in devices()],
        "tasks": [{"name": one.name, "what": one.what.replace("{written} ", "")} for one in TASKS.values()],
        "objectives": list(OBJECTIVES),
        "precisions": list(PRECISIONS),
        "choices": choices(),
        "rules": [{"name": rule.name, "statement": rule.statement} for rule in RULES],
        "exercises": exercises(),
        "settings": {"example": flat_from(TEXTBOOK), "other": flat_from(Settings())},
        "state": dict(defaults() if state is None else state),
    }


def model_data(entry: Model) -> dict[str, Any]:
    """Return what a model is called, how long its sequences are, and the attention of its first layer."""
    told = {name: getattr(entry, name) for name in ("name", "title", "model_type", "max_seq_len")}
    return {**told, "spec": parts_of(entry.layers[0].attention)}


def mechanism_data(entry: Mechanism) -> dict[str, Any]:
    """Return all that the encyclopaedia says of a mechanism, and its spec on the shared example."""
    told = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry) if field.name != "substitute"}
    told |= {"aliases": list(entry.aliases), "forces": dataclasses.asdict(entry.forces)}
    return {**told, "spec": entry.spec.to_data(), "spec_repr": repr(entry.spec)}
