"""`polyhead show`: a mechanism explained, or a spec printed; and every way of naming a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import polyhead as ph
from polyhead.catalog import Mechanism, mechanisms
from tests.cli.conftest import Polyhead
from tests.compare.textbook import HALF_A_DIGIT, ROWS
from tests.hf.conftest import MakeCheckpoint

SPEC = ph.AttentionSpec(
    storage=ph.Grouped(num_heads=4, num_kv_heads=2, head_dim=8),
    position=ph.RelativeBias.t5(),
    pattern=ph.Causal() & ph.SlidingWindow.causal(16),
)


@pytest.mark.parametrize("entry", mechanisms(), ids=lambda entry: entry.name)
def test_a_mechanism_is_explained(call: Polyhead, entry: Mechanism) -> None:
    done = call("show", entry.name)
    assert (done.code, done.err) == (0, "")
    text = " ".join(done.out.split())
    for part in (f"#{entry.number} {entry.title}", entry.paper, entry.what, entry.gains, entry.loses, entry.when):
        assert part in text
    assert " ".join(entry.formula.split()) in text
    assert f"cat gets [{', '.join(f'{x:.4f}' for x in ROWS[entry.number])}]" in text
    assert done.out.splitlines()[1].count(str(entry.year)) == 1  # where the paper's source has it, not once more
    assert repr(entry.spec).replace(" ", "") in done.out.replace(" ", "").replace("\n", "")


@pytest.mark.parametrize("entry", mechanisms(), ids=lambda entry: entry.name)
def test_json_of_a_mechanism(call: Polyhead, entry: Mechanism) -> None:
    data = json.loads(call("show", str(entry.number), "--json").out)
    assert (data["schema"], data["name"], data["latex"]) == (1, entry.name, entry.latex)
    assert data["forces"].keys() == {"quality", "speed", "memory", "position"}
    assert data["example"]["token"] == "cat"
    assert data["example"]["output"] == pytest.approx(ROWS[entry.number], rel=0, abs=HALF_A_DIGIT)
    assert ph.AttentionSpec.from_json(json.dumps(data["spec"])) == entry.spec


@pytest.mark.parametrize("name", ["GQA", "#6", "Grouped-query attention", "grouped"])
def test_a_mechanism_goes_by_many_names(call: Polyhead, name: str) -> None:
    assert call("show", name).out == call("show", "gqa").out


# --- a spec ---------------------------------------------------------------------------------------


def test_a_spec_in_a_file(call: Polyhead, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(SPEC.to_json(), encoding="utf-8")
    assert call("show", path).out.splitlines() == [
        "storage    Grouped(num_heads=4, num_kv_heads=2, head_dim=8)",
        "position   RelativeBias.t5()",
        "pattern    SlidingWindow(left=15, right=0)",
        "weighting  Softmax()",
        "query      4 heads of width 8",
        "key        2 heads of width 8",
        "value      2 heads of width 8",
        "cache      rolling, 32 numbers a token, of at most 16 tokens",
        "learns     bias_table [32, 4]",
    ]


@pytest.mark.parametrize(
    ("choices", "cache"),
    [
        ({"pattern": ph.Causal()}, "growing, 32 numbers a token"),
        ({"pattern": ph.Causal(), "weighting": ph.Linear()}, "state, 144 numbers whatever the length"),
        ({}, "none: pattern=Full() lets a query see later keys"),
    ],
)
def test_a_spec_says_what_its_cache_keeps(call: Polyhead, tmp_path: Path, choices: dict[str, Any], cache: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(ph.AttentionSpec(storage=SPEC.storage, **choices).to_json(), encoding="utf-8")
    (line,) = [line for line in call("show", path).out.splitlines() if line.startswith("cache ")]
    assert line.startswith(f"cache      {cache}")


def test_json_of_a_spec_is_a_file_that_is_read_again(call: Polyhead, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(SPEC.to_json(), encoding="utf-8")
    again = tmp_path / "again"  # a file is a file, whatever its name
    again.write_text(call("show", path, "--json").out, encoding="utf-8")
    assert ph.AttentionSpec.from_json(again.read_text(encoding="utf-8")) == SPEC
    assert call("show", again).out == call("show", path).out


def test_a_spec_that_learns_nothing(call: Polyhead, tmp_path: Path) -> None:
    path = tmp_path / "plain.json"
    path.write_text(ph.mechanism("mha").spec.to_json(), encoding="utf-8")
    assert call("show", path).out.endswith("learns     nothing\n")


def test_a_layer_of_a_model(call: Polyhead, checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("qwen2-sliding")
    full, sliding = (call("show", f"{path}:{layer}").out for layer in (0, 1))
    assert "pattern    Causal()" in full
    assert "pattern    SlidingWindow(left=3, right=0)" in sliding
    assert call("show", f"{path}:2") == (2, "", f"polyhead: {path} has layers 0 to 1, and 2 was asked for\n")


# --- what is none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gqaa", "no mechanism is called 'gqaa'; did you mean gqa? (a spec may also be MODEL:LAYER or a JSON file)"),
        ("16", "no mechanism is called '16'; use one of scaled-dot-product, mha, "),
        ("nowhere.json", "cannot read nowhere.json: No such file or directory"),
        ("nowhere:0", "'nowhere' does not exist, and nothing is downloaded; give a directory in transformers' format"),
        ("gqa:x", "no mechanism is called 'gqa:x'"),
    ],
)
def test_what_is_no_spec(
    call: Polyhead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("show", spec)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"polyhead: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "this is not JSON: Expecting property name"),
        (b"{}", "expected the JSON of a AttentionSpec, got None; write one with to_json()"),
        (b"\xff\xfe", "it is not UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_spec_is_named(call: Polyhead, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    done = call("show", path)
    assert (done.code, done.out) == (2, "")
    assert str(path) in done.err
    assert message in done.err
