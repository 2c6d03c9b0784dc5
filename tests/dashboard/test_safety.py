"""No request opens a file, starts a program or reaches another machine, whatever its texts say."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from polyhead.catalog import mechanism
from polyhead.dashboard.state import defaults
from tests.dashboard.conftest import Ask

EVIL = [
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://evil.example/passwd",
    "passwd\x00.json",
    "__import__('os').system('passwd')",
    "smollm2",
]
SPEC = mechanism("bigbird").spec.to_data()
MATRIX = {
    "source": {"kind": "text", "text": "hello", "second_text": "there", "layer": 0, "head": 0, "bare": True},
    "settings": {"shared_head": "mean", "rope_pairs": "half", "feature_map": "relu", "differential_form": "paper"},
    "specs": {"mine": SPEC},
}
BODIES: dict[str, Any] = {
    "matrix": {**MATRIX, "mechanisms": ["rope"]},
    "compare": {**MATRIX, "source": {"kind": "arrays", "id": "0" * 64}, "token": "cat"},
    "stages": {"mechanism": "rope", "token": "cat", "specs": {"mine": SPEC}, "source": {"kind": "example"}},
    "compose": defaults()["compose"],
    "explain": {**defaults()["compose"], "device": "cpu"},
    "plan": {**defaults()["plan"], "task": "generate", "precision": "bf16", "optimise": "latency"},
    "fits": {**defaults()["plan"], "asked": "batch"},
    "export": {"state": {"plan": {"model": "gpt2"}}},
}

EVENTS = ("open", "os.listdir", "os.scandir", "subprocess.Popen", "os.system", "socket.connect")


class Watch:
    """Notes what this process touches, while it is told to. Python cannot take an audit hook back."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[tuple[str, str]] = []
        sys.addaudithook(self.note)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event in EVENTS:
            self.seen.append((event, str(arguments[0])))


WATCH = Watch()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Return what is looked at or opened from here on."""
    stat = os.stat

    def noted(path: Any, *args: Any, **kwargs: Any) -> Any:
        WATCH.note("open", (path,))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", noted)
    WATCH.seen.clear()
    WATCH.on = True
    yield WATCH.seen
    WATCH.on = False


def changed(body: Any, evil: str) -> Iterator[Any]:
    """Yield a body once for each text in it, a name or a value, with another text in its place."""
    if isinstance(body, dict):
        for name, value in body.items():
            yield {other if one == name else one: inner for one, inner in body.items() for other in [evil]}
            yield from ({**body, name: inner} for inner in changed(value, evil))
    elif isinstance(body, list):
        for index, value in enumerate(body):
            yield from ([*body[:index], inner, *body[index + 1 :]] for inner in changed(value, evil))
    elif isinstance(body, str):
        yield evil


@pytest.fixture(scope="module", autouse=True)
def warm(ask: Ask) -> None:
    """Ask each question once, so that what is imported at first is no news."""
    for path, body in BODIES.items():
        assert ask(path, copy.deepcopy(body)).status_code in (200, 404, 422)


@pytest.mark.parametrize("path", [path for path in BODIES if path != "export"])
def test_no_text_is_a_path(ask: Ask, path: str, seen: list[tuple[str, str]]) -> None:
    for evil in EVIL:
        for body in changed(BODIES[path], evil):
            assert ask(path, body).status_code < 500
    assert_nothing(seen)


def test_no_text_of_a_state_is_a_path(ask: Ask, seen: list[tuple[str, str]]) -> None:
    for body in changed(BODIES["export"], EVIL[0]):
        assert ask("export", body).status_code < 500
    assert_nothing(seen)


def assert_nothing(seen: list[tuple[str, str]]) -> None:
    """Assert that nothing was touched but where Python's own modules lie, and what the system says of itself."""
    known = (*(path for path in sys.path if path), sys.prefix, sys.base_prefix, os.environ["XDG_CONFIG_HOME"])
    assert {event for event, _ in seen} <= {"open", "os.listdir"}
    assert not [path for _, path in seen if "passwd" in path]
    assert not [path for _, path in seen if not path.startswith((*known, "/proc/cpuinfo"))]
