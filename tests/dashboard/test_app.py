"""The dashboard over HTTP: what is not a question, how much of a request is read, and whose turn it is."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.testclient import TestClient

from polyhead import page
from polyhead.dashboard import app as application
from polyhead.dashboard.answers import QUESTIONS, Dashboard
from polyhead.dashboard.app import MAX_ARRAYS, MAX_JSON, make_app
from polyhead.dashboard.guard import Guard
from polyhead.dashboard.state import defaults
from polyhead.errors import CheckpointError, MissingExtraError
from tests.dashboard.conftest import Ask

JSON = {"content-type": "application/json"}
BYTES = {"content-type": "application/octet-stream"}


def error_of(response: Any) -> dict[str, str]:
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"type", "message"}
    return error


def test_the_page_is_served(client: TestClient) -> None:
    response = client.get("/")
    assert response.text == page.filled(defaults(), None)
    assert response.headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/v1", 404),
        ("GET", "/api/v1/../../etc/passwd", 404),
        ("GET", "/api/v1/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/api/v1/matrix", 405),
        ("POST", "/api/v1/catalogue", 405),
        ("PUT", "/", 405),
        ("DELETE", "/api/v1/arrays", 405),
        ("OPTIONS", "/api/v1/matrix", 405),
        ("TRACE", "/", 405),
    ],
)
def test_what_is_no_question_is_an_error_in_json(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["type"] == "RequestError"


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/octet-stream", 415),
        ("", 415),
    ],
)
def test_a_request_is_in_json(client: TestClient, kind: str, status: int) -> None:
    response = client.post("/api/v1/compare", content=b"{}", headers={"content-type": kind})
    assert response.status_code == status
    if status == 415:
        assert "compare takes application/json" in error_of(response)["message"]


def test_a_file_is_bytes(client: TestClient) -> None:
    response = client.post("/api/v1/arrays", content=b"{}", headers=JSON)
    assert response.status_code == 415
    assert "arrays takes application/octet-stream" in error_of(response)["message"]


DEEP = b'{"specs":' * 20_000
NOT_JSON = {
    "nothing": (b"", 400),
    "cut": (b'{"token":', 400),
    "two": (b"{} {}", 400),
    "NaN": (b'{"settings":{"bias_slope":NaN}}', 400),
    "UTF-8": (b'{"token":"\xff"}', 400),
    "half a character": (b'{"token":"\\ud800"}', 400),
    "deep": (b"[" * 100_000, 422),
    "deeper": (DEEP, 400),
    "deep in a spec": (b'{"specs":{"a":' + b'{"pattern":' * 10_000 + b"1" + b"}" * 10_002, 400),
    "infinite": (b'{"settings":{"bias_slope":1e999}}', 422),
    "digits": (b'{"settings":{"window":' + b"9" * 5000 + b"}}", 422),
    "list": (b"[]", 422),
    "null": (b"null", 422),
    "unknown": (b'{"tokens":1}', 422),
    "unknown within": (b'{"source":{"kind":"example","head":1}}', 422),
    "kind": (b'{"source":{"kind":"file","path":"/etc/passwd"}}', 422),
    "sign": (b'{"settings":{"window":-1}}', 422),
    "fraction": (b'{"settings":{"window":1.5}}', 422),
    "flag": (b'{"settings":{"window":true}}', 422),
    "text": (b'{"settings":{"window":"1"}}', 422),
    "large": (b'{"settings":{"window":4097}}', 422),
    "specs": (json.dumps({"specs": {str(index): {} for index in range(9)}}).encode(), 422),
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_no_request_is_refused(client: TestClient, name: str) -> None:
    body, status = NOT_JSON[name]
    response = client.post("/api/v1/compare", content=body, headers=JSON)
    assert response.status_code == status, response.text
    assert error_of(response)["message"]


@pytest.mark.parametrize(("path", "most", "headers"), [("compare", MAX_JSON, JSON), ("arrays", MAX_ARRAYS, BYTES)])
def test_a_long_request_is_refused_before_it_is_read(
    client: TestClient, path: str, most: int, headers: dict[str, str]
) -> None:
    response = client.post(f"/api/v1/{path}", content=b" " * (most + 1), headers=headers)
    assert response.status_code == 413
    assert error_of(response)["message"] == f"the request is longer than {most:,} bytes; send less"
    assert client.post(f"/api/v1/{path}", content=b" " * most, headers=headers).status_code != 413


async def asked(app: Guard, receive: Callable[[], Any], headers: dict[str, str], path: str = "compare") -> Any:
    """Ask an application without a client, and return the status and the body of what it sends."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in ({"host": "localhost"} | headers).items()]
    scope = {"type": "http", "method": "POST", "path": f"/api/v1/{path}", "headers": raw, "query_string": b""}
    await app({**scope, "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http"}, receive, send)
    return sent[0]["status"], sent[1]["body"]


def finished(asking: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end what asks, in a thread of its own: a browser that other tests drive has a loop in this one."""
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, asking).result()


def test_a_stream_without_end_is_read_to_the_limit(app: Guard) -> None:
    read = 0

    async def receive() -> Any:
        nonlocal read
        read += 2**16
        return {"type": "http.request", "body": b" " * 2**16, "more_body": True}

    status, _ = finished(asked(app, receive, JSON))
    assert status == 413
    assert MAX_JSON < read <= MAX_JSON + 2**16


def test_a_request_that_does_not_come_whole_is_given_up(app: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "PATIENCE", 0.05)

    async def receive() -> Any:
        await asyncio.sleep(60)

    status, body = finished(asked(app, receive, JSON))
    assert status == 408
    assert b"did not come within" in body


def test_who_has_gone_is_not_waited_for(app: Guard, caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    status, _ = finished(asked(app, receive, JSON))
    assert status == 400
    assert not caplog.records


def questions(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any]) -> TestClient:
    """Return a client of a dashboard that answers ``compare`` with what a function returns."""
    every = tuple(
        dataclasses.replace(one, answer=lambda *_: answer()) if one.path == "compare" else one for one in QUESTIONS
    )
    monkeypatch.setattr(application, "EVERY", every)
    return TestClient(make_app(Dashboard.of()), base_url="http://localhost", raise_server_exceptions=False)


def raising(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "status"),
    [(MissingExtraError("needs torch"), 424), (CheckpointError("is broken"), 409), (FileNotFoundError("secret"), 500)],
)
def test_what_an_error_becomes(monkeypatch: pytest.MonkeyPatch, error: Exception, status: int) -> None:
    response = questions(monkeypatch, raising(error)).post("/api/v1/compare", json={})
    assert response.status_code == status
    told = error_of(response)
    assert (told["type"], told["message"]) == (
        (type(error).__name__, str(error))
        if status < 500
        else ("InternalError", "something went wrong; the server's log says what")
    )


def test_what_nobody_expected_is_told_to_the_log_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = questions(monkeypatch, raising(RuntimeError("/home/someone/secret")))
    response = client.post("/api/v1/compare", json={})
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"


def test_turns_are_taken_and_the_queue_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "MAX_WAITING", 2)
    monkeypatch.setattr(application.os, "cpu_count", lambda: 1)
    begun, go = threading.Event(), threading.Event()
    inside = most = 0

    def answer() -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        begun.set()
        assert go.wait(20)
        inside -= 1
        return {"schema": 1}

    with questions(monkeypatch, answer) as client:
        statuses: list[int] = []

        def ask() -> None:
            statuses.append(client.post("/api/v1/compare", json={}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        threads[0].start()
        assert begun.wait(20)
        for thread in threads[1:]:
            thread.start()
        refused = _until_busy(client)
        assert refused.headers["retry-after"] == "1"
        assert error_of(refused) == {"type": "BusyError", "message": "too many requests are waiting; ask again"}
        assert client.get("/api/v1/model").status_code == 200  # which waits for nobody
        go.set()
        for thread in threads:
            thread.join(20)
    assert statuses == [200, 200, 200]
    assert most == 1


def _until_busy(client: TestClient) -> Any:
    """Ask what is refused at once where the queue is full, and would wait where it is not yet."""
    for _ in range(200):
        if client.app.app.state.turns.waiting == 3:  # type: ignore[attr-defined]
            break
        threading.Event().wait(0.02)
    return client.post("/api/v1/compare", json={})


def test_bodies_are_read_no_further_than_the_queue_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "MAX_WAITING", 0)
    monkeypatch.setattr(application.os, "cpu_count", lambda: 1)
    client = questions(monkeypatch, lambda: {"schema": 1})

    async def unread() -> Any:
        raise AssertionError("a body was read")

    turns = client.app.app.state.turns  # type: ignore[attr-defined]
    with turns.queued():
        status, _ = finished(asked(client.app, unread, JSON))  # type: ignore[arg-type]
    assert status == 503
    assert turns.waiting == 0


def test_who_has_gone_before_his_turn_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    client = questions(monkeypatch, lambda: ran.append(1) or {"schema": 1})
    messages = iter([{"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    status, _ = finished(asked(client.app, receive, JSON))  # type: ignore[arg-type]
    assert status == 400
    assert not ran


def test_a_quick_answer_is_not_kept_waiting(client: TestClient, ask: Ask) -> None:
    assert ask("model").json() == {
        "schema": 1,
        "name": None,
        "state": "none",
        "message": "no model was given; start with polyhead serve --model smollm2",
        "seconds": 0.0,
        "num_layers": None,
        "num_heads": None,
        "max_tokens": None,
    }
