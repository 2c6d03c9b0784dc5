"""``polyhead export``: the page as one file, for what the options say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.dashboard.state import defaults
from tests.cli.conftest import Polyhead
from tests.hf.conftest import TEXT, MakeCheckpoint


def recorded(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="polyhead-recorded">(.*?)</script>', page)
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_example(call: Polyhead, tmp_path: Path) -> None:
    done = call("export", tmp_path / "page.html", "--screen", "matrix", "--token", "mat")
    assert (done.code, done.out) == (0, "")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert done.err == f"polyhead: wrote {tmp_path / 'page.html'}, {len(page.encode()) / 1e6:.1f} MB\n"
    assert recorded(page)["state"] == {**defaults(), "screen": "matrix", "token": 4}


def test_to_stdout(call: Polyhead) -> None:
    done = call("export", "-")
    assert done.out.startswith("<!doctype html>")
    assert recorded(done.out)["state"] == defaults()


def test_arrays(call: Polyhead, tmp_path: Path) -> None:
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 6, 4))
    np.savez(tmp_path / "qkv.npz", query=query, key=key, value=value)
    done = call("export", tmp_path / "page.html", "--tensors", tmp_path / "qkv.npz", "--head", "1", "--token", "3")
    assert done.code == 0
    state = recorded((tmp_path / "page.html").read_text(encoding="utf-8"))["state"]
    assert (state["matrix"]["source"]["kind"], state["matrix"]["source"]["head"], state["token"]) == ("arrays", 1, 3)


def test_a_model(call: Polyhead, tmp_path: Path, checkpoint: MakeCheckpoint) -> None:
    model = checkpoint("llama")
    options = ["--model", model, "--text", TEXT, "--second-text", "the cat", "--layer", "1", "--head", "2", "--bare"]
    done = call("export", tmp_path / "page.html", *options, "--token", "dog")
    assert done.code == 0
    held = recorded((tmp_path / "page.html").read_text(encoding="utf-8"))
    source = {"kind": "text", "text": TEXT, "second_text": "the cat", "layer": 1, "head": 2, "bare": True}
    assert held["state"]["matrix"]["source"] == source
    assert held["state"]["token"] == TEXT.split().index("dog")
    assert held["answers"][0]["json"]["state"] == "ready"


def test_a_plan(call: Polyhead, tmp_path: Path) -> None:
    options = ["--plan-model", "gpt2", "--plan-context", "512", "--plan-device", "l4", "--screen", "plan"]
    assert call("export", tmp_path / "page.html", *options).code == 0
    held = recorded((tmp_path / "page.html").read_text(encoding="utf-8"))
    asked = {**defaults()["plan"], "model": "gpt2", "context": 512, "device": "l4"}
    assert held["state"]["plan"] == asked
    (plan,) = (answer["json"] for answer in held["answers"] if answer["path"] == "plan")
    assert (plan["model"], plan["context"]) == ("gpt2", 512)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument 'FILE'"),
        (["x.html", "--text", "hello"], 2, "--text goes with --model"),
        (["x.html", "--head", "1"], 2, "--head goes with --model"),
        (["x.html", "--model", "smollm2", "--tensors", "x.npz"], 2, ""),
        (["x.html", "--model", "/nowhere"], 2, "'/nowhere' does not exist"),
        (["x.html", "--screen", "film"], 2, "'film' is not one of"),
        (["x.html", "--token", "dog"], 2, "no token is called 'dog'"),
        (["x.html", "--plan-model", "x" * 65], 2, "plan.model: expected str of length <= 64"),
        (["/dev/null/x.html"], 2, "cannot write /dev/null/x.html: File exists"),
    ],
)
def test_what_is_wrong(call: Polyhead, arguments: list[str], code: int, message: str) -> None:
    done = call("export", *arguments)
    assert done.code == code
    assert message in done.err
    assert not Path("x.html").exists()


def test_a_plan_that_cannot_be_asked_is_an_error(call: Polyhead, tmp_path: Path) -> None:
    done = call("export", tmp_path / "x.html", "--plan-model", "gpt-7")
    assert done.code == 2
    assert "no model is called 'gpt-7'" in done.err
