"""`polyhead tables`: what it prints is what the functions return, for people and for machines."""

import json

import pytest

from polyhead.catalog import mechanisms
from polyhead.cost import tables
from tests.cli.conftest import Polyhead


def test_memory_at_the_textbooks_sizes(call: Polyhead) -> None:
    done = call("tables", "memory")
    assert (done.code, done.err) == (0, "")
    heading, _, *lines = done.out.splitlines()
    assert "131,072 tokens" in heading
    assert "8 layers" in heading
    rows = {line[:29].strip(): line[29:].split() for line in lines}
    assert rows["MHA"] == ["16", "KiB", "1", "×", "64", "GiB", "in", "32", "16", "GiB", "16", "GiB"]
    assert rows["MLA, 512 and a RoPE key of 64"][:2] == ["1.125", "KiB"]


def test_all_three_without_a_name(call: Polyhead) -> None:
    done = call("tables", "--context", "2048")
    assert (done.code, done.err) == (0, "")
    headings = [line for line in done.out.splitlines() if line.split(":")[0] in {"complexity", "forces", "memory"}]
    assert [line.split(":")[0] for line in headings] == ["complexity", "forces", "memory"]
    for entry in mechanisms():
        assert done.out.count(entry.name) >= 2


def test_json(call: Polyhead) -> None:
    done = call("tables", "memory", "complexity", "--context", "1024", "--layers", "2", "--json")
    data = json.loads(done.out)
    assert (done.code, done.err, data.pop("schema")) == (0, "", 1)
    shape = tables.Shape(context=1024, num_layers=2)
    assert data == {"complexity": tables.complexity(shape), "memory": tables.memory(shape)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["memory", "--heads", "7"], "not divisible"),
        (["memory", "--context", "0"], "context"),
        (["memory", "--precision", "fp9"], "did you mean fp8"),
        (["memories"], "memory"),
    ],
)
def test_what_is_wrong_is_said(call: Polyhead, options: list[str], said: str) -> None:
    done = call("tables", *options)
    assert done.code != 0
    assert done.out == ""
    assert said in done.err
