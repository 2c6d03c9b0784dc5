"""Answers about comparisons: they are the library's own numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from polyhead.catalog import mechanisms
from polyhead.compare import AttentionComparison
from polyhead.compare.matrices import matrices
from polyhead.compare.stages import stages
from tests.dashboard.conftest import Ask, matrices_in
from tests.dashboard.test_arrays import npz

NAMES = [entry.name for entry in mechanisms()]
MINE = {
    "storage": {"type": "Grouped", "num_heads": 1, "head_dim": 4},
    "pattern": {"type": "Band", "left": 1, "right": 0},
}


def test_the_matrices_are_the_librarys(ask: Ask) -> None:
    response = ask("matrix", {})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.content == matrices(AttentionComparison())
    about, tensors = matrices_in(response.content)
    assert [row["name"] for row in about["rows"]] == NAMES
    table = AttentionComparison().table(token="cat")
    for name in NAMES:
        np.testing.assert_array_equal(tensors[f"{name}/weights"][about["token"]], table[name].weights)
        np.testing.assert_array_equal(tensors[f"{name}/output"][about["token"]], table[name].output)


def test_some_mechanisms_with_some_settings(ask: Ask) -> None:
    body = {"settings": {"window": 0}, "mechanisms": ["sliding-window", "mine"], "specs": {"mine": MINE}}
    about, tensors = matrices_in(ask("matrix", body).content)
    assert [row["name"] for row in about["rows"]] == ["sliding-window", "mine"]
    np.testing.assert_array_equal(tensors["sliding-window/weights"], np.eye(5))
    assert (np.triu(tensors["mine/weights"], 1) == 0).all()


def test_nothing_but_what_is_asked_runs(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    result = AttentionComparison.result
    monkeypatch.setattr(AttentionComparison, "result", lambda self, name: ran.append(name) or result(self, name))
    ask("matrix", {"mechanisms": ["alibi"]})
    assert set(ran) == {"alibi", "scaled-dot-product"}


@pytest.mark.parametrize("token", ["cat", 1, 3, -1, None])
def test_one_tokens_rows_are_the_librarys(ask: Ask, token: Any) -> None:
    expected = json.loads(AttentionComparison().table(token).to_json())
    assert ask("compare", {"token": token}).json() == expected


def test_the_rows_of_arrays(ask: Ask, client: Any) -> None:
    query, key, value = np.random.default_rng(3).normal(size=(3, 2, 5, 4))
    sent = client.post(
        "/api/v1/arrays",
        content=npz(query=query, key=key, value=value, tokens=np.array(list("abcde"))),
        headers={"content-type": "application/octet-stream"},
    ).json()
    body = {"source": {"kind": "arrays", "id": sent["id"], "head": 1}, "token": "c"}
    expected = AttentionComparison(query, key, value, tokens=list("abcde"), head=1).table("c")
    assert ask("compare", body).json() == json.loads(expected.to_json())


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_are_the_librarys(ask: Ask, name: str) -> None:
    expected = stages(AttentionComparison(), name, 2)
    assert ask("stages", {"mechanism": name, "token": 2}).json() == json.loads(json.dumps(expected))


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "message"),
    [
        ("matrix", {"mechanisms": ["rop"]}, 404, "UnknownNameError", "no mechanism is called 'rop'; did you mean rope"),
        ("compare", {"token": "dog"}, 404, "UnknownNameError", "no token is called 'dog'"),
        ("compare", {"token": 9}, 404, "UnknownNameError", "there is no token 9; positions run from 0 to 4"),
        ("stages", {"mechanism": "rope", "token": "dog"}, 404, "UnknownNameError", "no token is called 'dog'"),
        ("matrix", {"settings": {"num_heads": 3}, "mechanisms": ["mha"]}, 200, "", ""),
        ("compare", {"settings": {"num_heads": 3}, "mechanisms": ["mha"]}, 422, "SpecError", "num_heads=3"),
        ("matrix", {"settings": {"tile": 0}}, 422, "SpecError", "tile=0 is not allowed"),
        ("matrix", {"specs": {"mine": {"storage": {"type": "X"}}}}, 422, "SpecError", "the type 'X'"),
    ],
)
def test_refusals_are_the_librarys(ask: Ask, path: str, body: Any, status: int, kind: str, message: str) -> None:
    response = ask(path, body)
    assert response.status_code == status
    if status != 200:
        error = response.json()["error"]
        assert error["type"] == kind
        assert message in error["message"]


def test_what_overflows_is_refused(ask: Ask) -> None:
    steep = {"storage": MINE["storage"], "position": {"type": "Alibi", "slopes": [1e12]}}
    assert ask("matrix", {"specs": {"steep": steep}}).status_code == 200
    response = ask("matrix", {"specs": {"scaled": {**MINE, "weighting": {"type": "Softmax", "scale": 1e12}}}})
    assert response.status_code == 200
    assert np.isfinite(matrices_in(response.content)[1]["scaled/weights"]).all()
