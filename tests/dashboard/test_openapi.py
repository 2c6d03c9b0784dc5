"""The description for other programs: it is complete, and requests made from it never fail."""

from __future__ import annotations

import functools
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from polyhead.catalog import mechanisms, models
from polyhead.dashboard.answers import Dashboard
from polyhead.dashboard.app import ROOT, make_app
from polyhead.dashboard.openapi import EVERY, openapi
from polyhead.dashboard.requests import SCHEMAS
from polyhead.dashboard.state import defaults
from polyhead.page import version
from polyhead.spec import AttentionSpec, LongRopeScaling, Rotary
from polyhead.spec.composed import parts_of
from tests.dashboard.conftest import Ask

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
SCHEMA = schemathesis.openapi.from_dict(openapi(ROOT))
SCHEMA.app = make_app(Dashboard.of(), hosts=["testserver"])
POSTS = {
    result.ok().path.split("/")[-1]: result.ok()
    for result in SCHEMA.get_all_operations()
    if result.ok().method == "post"
}
EXAMPLES = {"export": 1}
"""How many requests are made in the everyday tests, where that is not the usual number."""


def exchange(name: str, mode: GenerationMode, count: int) -> None:
    """Send so many requests that the description makes, and check each answer against it."""

    @settings(max_examples=count, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(POSTS[name].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        case.validate_response(case.call(), checks=CHECKS)

    send()


@pytest.mark.parametrize("name", POSTS)
def test_requests_that_are_described_are_answered_or_refused(name: str) -> None:
    exchange(name, GenerationMode.POSITIVE, EXAMPLES.get(name, 10))


@pytest.mark.parametrize("name", sorted(set(POSTS) - {"arrays"}))  # there are no bytes that are no bytes
def test_requests_that_are_not_are_refused(name: str) -> None:
    exchange(name, GenerationMode.NEGATIVE, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", POSTS)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_many_requests(name: str, mode: GenerationMode) -> None:
    if (name, mode) != ("arrays", GenerationMode.NEGATIVE):
        exchange(name, mode, 40 if name == "export" else 400)


def test_every_question_is_described(ask: Ask) -> None:
    found = ask("openapi.json").json()
    assert found == openapi(ROOT)
    assert found["openapi"] == "3.1.0"
    assert found["info"]["version"] == version()
    assert set(found["paths"]) == {f"{ROOT}/{question.path}" for question in EVERY}
    for question in EVERY:
        ((method, operation),) = found["paths"][f"{ROOT}/{question.path}"].items()
        assert (method == "post") == ("requestBody" in operation) == (question.request is not None)
        assert list(operation["responses"]["200"]["content"]) == [question.gives]
        assert {"400", "413", "415", "422", "503"} < set(operation["responses"])


def test_every_reference_leads_somewhere() -> None:
    found = openapi(ROOT)

    def references(value: Any) -> list[str]:
        if isinstance(value, list):
            return [one for member in value for one in references(member)]
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + references(list(value.values()))
        return []

    for reference in references(found):
        at: Any = found
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]


@functools.cache
def validator(name: str) -> Any:
    return jsonschema_rs.validator_for({"$ref": f"{SCHEMAS}{name}", "components": openapi(ROOT)["components"]})


@pytest.mark.parametrize("name", ["Spec", "Parts"])
def test_every_spec_of_the_catalogue_is_described(name: str) -> None:
    specs: list[AttentionSpec] = [entry.spec for entry in mechanisms()]
    specs += [layer.attention for one in models() for layer in one.layers]
    described = validator(name)
    for spec in dict.fromkeys(specs):
        described.validate(spec.to_data() if name == "Spec" else parts_of(spec))


def test_a_scaling_without_a_form_is_described() -> None:
    scaling = LongRopeScaling(short_factor=(1.0, 2.0), long_factor=(3.0, 4.0), original_max_seq_len=64)
    validator("Position").validate(Rotary(scaling=scaling).to_data())


def test_what_the_page_sends_at_first_is_described() -> None:
    begun = defaults()
    validator("MatrixRequest").validate(begun["matrix"])
    validator("ComposeRequest").validate(begun["compose"])
    validator("PlanRequest").validate(begun["plan"])


@given(st.sampled_from(["num_heads", "head_dim"]), st.integers(2**20 + 1))
def test_what_is_too_large_is_described_as_such(name: str, number: int) -> None:
    storage = {"type": "Grouped", "num_heads": 1, "head_dim": 4, name: number}
    assert not validator("Storage").is_valid(storage)
