"""JSON schemas of a spec's parts, read off the form in which they are filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from polyhead.catalog import devices, models
from polyhead.catalog.controls import controls
from polyhead.dashboard.bounds import LARGEST, MAX_REAL, MAX_WHOLE
from polyhead.dashboard.choices import PATTERNS, POSITION, SCALINGS, STORAGE, WEIGHTING, described
from polyhead.planner.asked import OBJECTIVES
from polyhead.planner.tasks import TASKS
from polyhead.spec.choice import Choice

MAX_PARTS = 8
"""Patterns in a combination, as the schema has it; what bounds a spec is its number of values."""

_NUMBERS: dict[str, Any] = {"type": ["array", "null"], "items": {"type": "number"}}
_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "choice": "string"}


def spec_schemas(root: str) -> dict[str, Any]:
    """Return the schema of what may stand in each of the four places, and of a whole spec.

    Args:
        root: What stands before a schema's name where another refers to it.

    Returns:
        Schemas by name.
    """
    parts = {"type": "array", "items": {"$ref": f"{root}Pattern"}, "minItems": 1, "maxItems": MAX_PARTS}
    combined = [_object(name, {"parts": parts}, ["parts"]) for name in ("AllOf", "AnyOf")]
    links = {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}}
    block = {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_WHOLE}
    table = _object("Links", {"table": links, "block": block}, ["table"])
    places = ("storage", "position", "pattern", "weighting")
    return {
        "Storage": _any_of(STORAGE, root),
        "Position": _any_of(POSITION, root),
        "Pattern": {"anyOf": [*_any_of(PATTERNS, root)["anyOf"], table, *combined]},
        "Weighting": _any_of(WEIGHTING, root),
        "Scaling": {"anyOf": [*_any_of(SCALINGS, root)["anyOf"], _long_rope()]},
        "Spec": _object("AttentionSpec", {name: {"$ref": f"{root}{name.title()}"} for name in places}, ["storage"]),
    }


def add_names(schemas: dict[str, Any]) -> None:
    """Write into the schemas of requests which names there are, where a text is one of some that the catalogue has.

    Args:
        schemas: Schemas by name, which are changed.
    """
    named = {
        "model": [one.name for one in models()],
        "device": [one.name for one in devices()],
        "task": list(TASKS),
        "optimise": list(OBJECTIVES),
        **{control.name: list(control.choices) for control in controls() if control.choices},
    }
    for request in ("PlanRequest", "FitsRequest", "Settings"):
        for name, field in schemas[request]["properties"].items():
            if name in named:
                field["enum"] = [*named[name], *([None] if "default" in field else [])]


def _any_of(kinds: Iterable[tuple[str, type[Choice]]], root: str) -> dict[str, Any]:
    return {"anyOf": [_schema(label, kind, root) for label, kind in kinds]}


def _schema(label: str, kind: type[Choice], root: str) -> dict[str, Any]:
    told = described(label, kind)
    fields = dict.fromkeys((field.name for field in dataclasses.fields(kind)), _NUMBERS)  # what has no form is a list
    fields |= {field["name"]: _field(field, root) for field in told["fields"]}
    return {**_object(told["type"], fields, told["required"]), "title": label}


def _long_rope() -> dict[str, Any]:
    """Return the schema of the one scaling that has no form, since it has a factor for each plane."""
    factors = {"type": "array", "items": {"type": "number"}}
    fields = {"short_factor": factors, "long_factor": factors, "original_max_seq_len": {"type": "integer"}}
    numbers = {"factor": {"type": "number"}, "attention_factor": {"type": ["number", "null"]}}
    return _object("LongRopeScaling", {**fields, **numbers}, list(fields))


def _object(kind: str, fields: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"const": kind}, **fields},
        "required": ["type", *required],
        "additionalProperties": False,
    }


def _field(field: Mapping[str, Any], root: str) -> dict[str, Any]:
    name, kind = field["name"], field["kind"]
    if kind == "part":
        return {"anyOf": [{"$ref": f"{root}Scaling"}, {"type": "null"}]}
    found: dict[str, Any] = {"type": [_TYPES[kind], "null"] if field.get("optional") else _TYPES[kind]}
    if kind == "int":
        found |= {"minimum": field["min"] or 0, "maximum": LARGEST.get(name, MAX_WHOLE)}
    elif kind == "float":
        found |= {"minimum": -MAX_REAL, "maximum": MAX_REAL}
    elif kind == "choice":
        found |= {"enum": field["choices"]}
    return {**found, "description": field["help"]} if field.get("help") else found
