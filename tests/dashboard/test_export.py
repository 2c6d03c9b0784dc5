"""The page as one file: it holds what it may ask, answered as the server would."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import numpy as np
import pytest

from polyhead.catalog import mechanisms
from polyhead.dashboard.answers import Dashboard
from polyhead.dashboard.export import export, header_of, values_of
from polyhead.dashboard.state import defaults
from polyhead.errors import SpecError, UnknownNameError
from polyhead.spec.composed import parts_of
from tests.dashboard.conftest import Ask
from tests.dashboard.test_arrays import npz

NAMES = [entry.name for entry in mechanisms()]


def recorded(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="polyhead-recorded">(.*?)</script>', page)
    found: dict[str, Any] = json.loads(text)
    return found


def key(path: str, body: Any) -> str:
    """Return what the page looks an answer up by: members that are null do not count."""

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: told(member) for name, member in value.items() if member is not None}
        return [told(member) for member in value] if isinstance(value, list) else value

    return f"{path} {json.dumps(told(body), sort_keys=True)}"


@pytest.fixture(scope="module")
def held() -> dict[str, Any]:
    """Return what the page holds that begins as every page does."""
    return recorded(export(Dashboard.of(), {}))


@pytest.fixture(scope="module")
def answers(held: dict[str, Any]) -> dict[str, Any]:
    return {key(answer["path"], answer["body"]): answer for answer in held["answers"]}


def test_it_begins_as_every_page_does(held: dict[str, Any], answers: dict[str, Any]) -> None:
    assert held["state"] == defaults()
    assert len(answers) == len(held["answers"])  # nothing twice


def test_it_holds_what_its_screens_ask(answers: dict[str, Any]) -> None:
    begun = defaults()
    for path, body in (
        ("model", None),
        ("records", None),
        ("matrix", {"source": {"kind": "example"}, "settings": {}, "specs": {}}),
        ("compose", begun["compose"]),
        ("plan", begun["plan"]),
        ("fits", {**begun["plan"], "asked": "context"}),
        ("fits", {**begun["plan"], "asked": "batch"}),
        *(("stages", {**begun["matrix"], "mechanism": name, "token": token}) for name in NAMES for token in range(5)),
        *(("compose", {**begun["compose"], "spec": parts_of(entry.spec)}) for entry in mechanisms()),
    ):
        assert key(path, body) in answers


def test_it_holds_every_value_of_every_control(answers: dict[str, Any]) -> None:
    whole = answers[key("matrix", {"source": {"kind": "example"}, "settings": {}, "specs": {}})]
    about = header_of(base64.b64decode(whole["base64"]))
    count = 0
    for row in about["rows"]:
        for control in row["controls"]:
            for value in values_of(control):
                body = {"settings": {control["name"]: value}, "mechanisms": [row["name"]]}
                assert key("matrix", {"source": {"kind": "example"}, "specs": {}, **body}) in answers
                count += 1
    assert count > 150


def test_its_answers_are_the_servers(held: dict[str, Any], ask: Ask) -> None:
    chosen = np.random.default_rng(0).permutation(len(held["answers"]))[:60]
    for answer in [*(held["answers"][index] for index in chosen), *held["answers"][:3]]:
        response = ask(answer["path"], answer["body"])
        assert response.status_code == 200
        if "base64" in answer:
            assert base64.b64decode(answer["base64"]) == response.content
        else:
            assert answer["json"] == response.json()


@pytest.mark.parametrize(
    ("control", "values"),
    [
        ({"kind": "choice", "choices": ["a", "b"]}, ["a", "b"]),
        ({"kind": "int", "min": 1, "max": 3, "step": 1}, [1, 2, 3]),
        ({"kind": "float", "min": 0.0, "max": 0.3, "step": 0.1}, [0.0, 0.1, 0.2, 0.3]),
    ],
)
def test_the_values_of_a_control(control: dict[str, Any], values: list[Any]) -> None:
    assert values_of(control) == values
    assert [type(value) for value in values_of(control)] == [type(value) for value in values]


def test_a_control_over_decades_has_some_of_its_values() -> None:
    values = values_of({"kind": "float", "min": 2.0, "max": 1e7, "step": None})
    assert (values[0], values[-1], len(values)) == (2.0, 1e7, 41)
    assert all(value == float(f"{value:.2g}") for value in values)  # as the page rounds them


def test_settings_that_are_moved_are_kept(ask: Ask) -> None:
    matrix = {"source": {"kind": "example"}, "settings": {"window": 2, "tile": 3}, "specs": {}}
    page = ask("export", {"state": {"matrix": matrix, "screen": "matrix", "mine": {"shown": [1, None]}}})
    assert page.headers["content-disposition"] == 'attachment; filename="polyhead.html"'
    held = recorded(page.text)
    assert held["state"] == {**defaults(), "matrix": matrix, "screen": "matrix", "mine": {"shown": [1, None]}}
    keys = {key(answer["path"], answer["body"]) for answer in held["answers"]}
    moved = {"source": matrix["source"], "settings": {"window": 2}, "mechanisms": ["sliding-window"], "specs": {}}
    assert key("matrix", moved) in keys
    assert key("stages", {**matrix, "settings": {"tile": 3}, "mechanism": "flash", "token": 0}) in keys


def test_of_arrays_it_holds_what_is_shown(client: Any, ask: Ask) -> None:
    query, key_rows, value = np.random.default_rng(1).normal(size=(3, 6, 4))
    data = npz(query=query, key=key_rows, value=value)
    sent = client.post("/api/v1/arrays", content=data, headers={"content-type": "application/octet-stream"}).json()
    matrix = {"source": {"kind": "arrays", "id": sent["id"], "head": 0}, "settings": {}, "specs": {}}
    held = recorded(ask("export", {"state": {"matrix": matrix, "token": 2}}).text)
    tokens = [answer["body"]["token"] for answer in held["answers"] if answer["path"] == "stages"]
    assert set(tokens) == {2}
    assert sum(answer["path"] == "matrix" for answer in held["answers"]) == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"screen": "film"}, "screen: invalid enum value 'film'; this is no state of the page"),
        ({"token": -1}, "token: expected int >= 0"),
        ({"matrix": {"source": {"kind": "file"}}}, "matrix.source.kind: invalid value 'file'"),
        ({"plan": {"model": "gpt2", "path": "/etc/passwd"}}, "plan: object contains unknown field path"),
        ({"compose": {}}, "compose: object missing required field spec"),
    ],
)
def test_what_is_no_state_is_refused(state: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        export(Dashboard.of(), state)


def test_a_source_that_is_gone_is_an_error() -> None:
    matrix = {"source": {"kind": "arrays", "id": "0" * 64, "head": 0}, "settings": {}, "specs": {}}
    with pytest.raises(UnknownNameError, match="no arrays are kept as 000000000000…; send them again"):
        export(Dashboard.of(), {"matrix": matrix})


def test_what_cannot_be_answered_on_another_screen_is_left_out() -> None:
    held = recorded(export(Dashboard.of(), {"plan": {"model": "no-such-model"}}))
    assert not [answer for answer in held["answers"] if answer["path"] in ("plan", "fits")]
