"""``polyhead serve``: what is wrong is said before anything is served."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.dashboard import serve as serving
from polyhead.dashboard.answers import Dashboard
from tests.cli.conftest import Polyhead


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Dashboard]:
    """Return what would be served; the command returns at once."""
    boards: list[Dashboard] = []

    def serve(board: Dashboard, opened: socket.socket, host: str, *, ready: Callable[[], None]) -> None:
        boards.append(board)
        ready()

    monkeypatch.setattr(serving, "serve", serve)
    return boards


def test_it_says_where_it_is(call: Polyhead, served: list[Dashboard]) -> None:
    done = call("serve", "--port", "0")
    assert done.code == 0
    assert done.out.startswith("polyhead: http://127.0.0.1:")
    assert served[0].state["matrix"]["source"] == {"kind": "example"}
    assert served[0].model.state == "none"


def test_it_opens_the_browser_if_asked(
    call: Polyhead, served: list[Dashboard], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("click.launch", opened.append)
    done = call("serve", "--port", "0", "--open")
    assert opened == [done.out.split()[1]]


def test_it_begins_with_arrays(call: Polyhead, served: list[Dashboard], tmp_path: Path) -> None:
    np.savez(tmp_path / "qkv.npz", query=np.eye(3), key=np.eye(3), value=np.eye(3))
    assert call("serve", "--port", "0", "--tensors", tmp_path / "qkv.npz").code == 0
    source = served[0].state["matrix"]["source"]
    assert source["kind"] == "arrays"
    assert len(source["id"]) == 64


def test_it_shows_records(call: Polyhead, served: list[Dashboard], tmp_path: Path) -> None:
    from polyhead.dashboard.records import measured

    (tmp_path / "mine.json").write_text(measured()[0][1].to_json(), encoding="utf-8")
    assert call("serve", "--port", "0", "--records", tmp_path / "mine.json").code == 0
    assert next(iter(dict(served[0].records))) == "mine"


def test_a_port_that_is_taken(call: Polyhead, served: list[Dashboard]) -> None:
    with serving.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        done = call("serve", "--port", str(port))
    assert done.code == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; give another --port" in done.err
    assert not served


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "no such host"], "cannot listen on no such host, port "),
        (["--host", "x" * 80], "cannot listen on xxx"),
        (["--port", "65536"], "Invalid value for '--port'"),
        (["--model", "/nowhere/model"], "'/nowhere/model' does not exist, and nothing is downloaded"),
        (["--records", "/nowhere/x.json"], "cannot read /nowhere/x.json: No such file or directory"),
        (["--tensors", "/nowhere/x.npz"], "cannot read /nowhere/x.npz: No such file or directory"),
    ],
)
def test_what_is_wrong(call: Polyhead, served: list[Dashboard], arguments: list[str], message: str) -> None:
    done = call("serve", *(["--port", "0"] if "--port" not in arguments else []), *arguments)
    assert done.code == 2
    assert message in done.err
    assert not served


def test_files_that_are_none_are_named(call: Polyhead, served: list[Dashboard], tmp_path: Path) -> None:
    (file := tmp_path / "x").write_text("hello", encoding="utf-8")
    for option, message in (("--tensors", "this is neither an .npz nor"), ("--records", "this is no record")):
        done = call("serve", "--port", "0", option, file)
        assert done.code == 2
        assert f"polyhead: {file}: {message}" in done.err


@pytest.mark.parametrize("command", [["serve"], ["export", "-"]])
@pytest.mark.parametrize("module", ["starlette", "uvicorn", "msgspec"])
def test_without_its_extra(call: Polyhead, monkeypatch: pytest.MonkeyPatch, command: list[str], module: str) -> None:
    import_module = importlib.import_module

    def missing(name: str, *arguments: Any) -> Any:
        if name == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name, *arguments)

    monkeypatch.setattr(importlib, "import_module", missing)
    done = call(*command)
    assert done.code == 3
    expected = f"polyhead {command[0]} needs {module}, which is not installed; type: pip install 'polyhead[serve]'"
    assert expected in done.err


def test_its_help_begins_with_what_to_type(call: Polyhead) -> None:
    for command in ("serve", "export"):
        text = call(command, "--help").out
        assert text.index("Examples:") < text.index("Options:")
        assert f"polyhead {command}" in text
