"""The dashboard's application, asked in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from polyhead.compare.inputs import Array
from polyhead.dashboard.answers import Dashboard
from polyhead.dashboard.app import ROOT, make_app
from polyhead.dashboard.guard import Guard

Ask = Callable[..., Any]


@pytest.fixture(scope="package")
def app() -> Guard:
    """Return the application of a dashboard without a model."""
    return make_app(Dashboard.of(), hosts=["testserver"])


@pytest.fixture(scope="package")
def client(app: Guard) -> Iterator[TestClient]:
    """Return what asks it; an error of the server's own is an answer with the status 500."""
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="package")
def ask(client: TestClient) -> Ask:
    """Return a function that asks a question and returns the response."""

    def ask(path: str, body: Any = None, **options: Any) -> Any:
        address = f"{ROOT}/{path}"
        return client.get(address, **options) if body is None else client.post(address, json=body, **options)

    return ask


def matrices_in(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return what the answer to ``matrix`` says of itself, and its tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    about = json.loads(header.pop("__metadata__")["polyhead"])
    kinds = {"F64": "<f8", "U8": "<u1"}
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        rows = np.frombuffer(data[8 + length + start : 8 + length + stop], kinds[entry["dtype"]])
        tensors[name] = rows.reshape(entry["shape"])
    return about, tensors
