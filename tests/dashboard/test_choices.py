"""The form in which a spec is filled in: what it offers is what the spec's classes take."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import pytest

from polyhead.dashboard.choices import PATTERNS, POSITION, SCALINGS, STORAGE, WEIGHTING, WORDS, choices, described
from polyhead.errors import SpecError
from polyhead.spec import AttentionSpec, Grouped, Rotary
from polyhead.spec.attention import part_from_data
from polyhead.spec.choice import Choice

ENTRIES = [(place, entry) for place, entries in choices().items() for entry in entries]
CLASSES = [*STORAGE, *POSITION, *PATTERNS, *WEIGHTING, *SCALINGS]
WHOLE = [(label, kind, field["name"]) for label, kind in CLASSES for field in described(label, kind)["fields"]]


def at(data: Any, path: list[str | int]) -> Any:
    for step in path:
        data = data[step]
    return data


def put(data: Any, path: list[str | int], value: Any) -> Any:
    changed = copy.deepcopy(data)
    at(changed, path[:-1])[path[-1]] = value
    return changed


@pytest.mark.parametrize(("place", "entry"), ENTRIES, ids=lambda value: str(value)[:12])
def test_what_is_offered_is_a_part_of_a_spec(place: str, entry: dict[str, Any]) -> None:
    part = part_from_data(entry["data"])
    assert part.to_data() == entry["data"]
    storage = part if place == "storage" else Grouped(num_heads=32, head_dim=128)
    assert getattr(AttentionSpec(**{"storage": storage, place: part}), place) == part


@pytest.mark.parametrize(("place", "entry"), ENTRIES, ids=lambda value: str(value)[:12])
def test_a_field_says_where_its_value_stands(place: str, entry: dict[str, Any]) -> None:
    for field in entry["fields"]:
        assert at(entry["data"], field["at"]) == field["default"]
        assert field["help"]
        if field["optional"]:
            part_from_data(put(entry["data"], field["at"], None))


@pytest.mark.parametrize(("label", "kind"), CLASSES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_field_but_tables_is_there(label: str, kind: type[Choice]) -> None:
    told = described(label, kind)
    named = {field["name"] for field in told["fields"]}
    assert {field.name for field in dataclasses.fields(kind)} - named <= {"slopes"}
    assert set(told["required"]) <= set(told["data"])


@pytest.mark.parametrize(("label", "kind", "name"), WHOLE)
def test_the_least_value_is_the_least_that_is_taken(label: str, kind: type[Choice], name: str) -> None:
    told = described(label, kind)
    (field,) = (field for field in told["fields"] if field["name"] == name)
    if field["kind"] != "int":
        assert field["min"] is None
        return
    required = {one: told["data"][one] for one in told["required"]}
    kind(**{**required, name: field["min"]})
    with pytest.raises(SpecError, match=name):
        kind(**{**required, name: field["min"] - 1})


@pytest.mark.parametrize("word", WORDS)
def test_words_are_those_that_the_classes_name(word: str) -> None:
    (kind,) = (kind for _, kind in CLASSES if word in {field.name for field in dataclasses.fields(kind)})
    required = {name: described("", kind)["data"][name] for name in described("", kind)["required"]}
    for allowed in WORDS[word]:
        kind(**required, **{word: allowed})
    with pytest.raises(SpecError, match=re.escape(f"; use {' or '.join(map(repr, WORDS[word]))}") + "$"):
        kind(**required, **{word: "?"})


def test_the_fields_of_a_scaling_stand_in_the_field_for_it() -> None:
    (field,) = (field for field in described("", Rotary)["fields"] if field["kind"] == "part")
    assert [one["type"] for one in field["choices"]] == [kind.__name__ for _, kind in SCALINGS]
    for one in field["choices"]:
        Rotary(scaling=part_from_data(one["data"]))  # type: ignore[arg-type]


def test_a_causal_part_of_a_pattern_has_no_field() -> None:
    (entry,) = (entry for entry in choices()["pattern"] if entry["label"] == "chunks, causal")
    assert [field["name"] for field in entry["fields"]] == ["size", "left", "right"]
