"""`polyhead compare --model`: a real model's heads, marked and explained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Polyhead
from tests.cli.test_compare import refused, rows
from tests.hf.conftest import TEXT, TOKENS, MakeCheckpoint

pytest.importorskip("transformers", reason="transformers runs the models")


@pytest.fixture
def llama(checkpoint: MakeCheckpoint) -> Path:
    return checkpoint("llama")


def test_the_models_own_is_marked_and_the_rest_called_a_what_if(call: Polyhead, llama: Path) -> None:
    done = call("compare", "--model", llama, "--text", TEXT, "--layer", "1", "--head", "2")
    assert (done.code, done.err) == (0, "")
    first, spec, tokens, *lines = done.out.splitlines()
    assert first.startswith("llama, layer 1, as the model runs it; weights equal the model's to ")
    assert "query “Ġhouse” at position 12" in first
    assert spec.startswith("AttentionSpec(storage=Grouped(num_heads=4, num_kv_heads=2, head_dim=8), position=Rotary(")
    assert tokens.split() == list(TOKENS)
    marked = [line.split()[2] for line in lines if "●" in line and line.split()[0].isdecimal()]
    assert marked == ["scaled-dot-product", "causal", "gqa", "rope", "flash"]
    assert "cross is left out" in done.out
    assert "equal to scaled-dot-product here: mha (every head still meets the same keys and values)," in done.out
    assert {name for name, words in rows(done.out).items() if "0.000" in words} == {*marked, "mha"}
    text = " ".join(done.out.split())
    assert "● is the model's own mechanism. The others are a what-if on frozen weights: they tell what the" in text
    assert text.endswith("and nothing about a model trained so.")


def test_a_second_text_brings_cross_attention(call: Polyhead, llama: Path) -> None:
    done = call("compare", "--model", llama, "--text", TEXT, "--second-text", "the dog", "--json", "--token", "sat")
    data = json.loads(done.out)
    assert (data["token"], data["position"], data["absent"]) == ("Ġsat", 2, {})
    assert data["rows"][3]["key_tokens"] == ["the", "Ġdog"]
    assert [row["number"] for row in data["rows"] if row["is_own"]] == [1, 3, 6, 8, 13]


def test_the_bare_form_marks_nothing_of_llama(call: Polyhead, llama: Path) -> None:
    done = call("compare", "--model", llama, "--text", TEXT, "--bare")
    assert "textbook's form" in done.out
    assert "●" not in done.out
    assert "These are a what-if on frozen weights" in done.out


def test_a_head_a_layer_or_a_text_that_is_not_there(call: Polyhead, llama: Path) -> None:
    for option, value, message in (
        ("--head", "4", "head=4 does not exist; the input has heads 0 to 3"),
        ("--layer", "2", "there is no layer 2 among 2; use 0 to 1"),
        ("--token", "zebra", "no token is called 'zebra'"),
    ):
        refused(call("compare", "--model", llama, "--text", TEXT, option, value), message)
    refused(call("compare", "--model", llama, "--text", ""), "text='' has no token; give at least one word")
    refused(call("compare", "--model", llama / "config.json", "--text", TEXT), "is no checkpoint; give a directory")


def test_a_corrupt_checkpoint(call: Polyhead, llama: Path) -> None:
    weights = llama / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(call("compare", "--model", llama, "--text", TEXT), f"the tensors of {weights} cannot be read")


@pytest.mark.model
@pytest.mark.usefixtures("smollm2")
def test_smollm2(call: Polyhead) -> None:
    text = "The cat sat on the mat because it was tired."
    done = call("compare", "--model", "smollm2", "--text", text, "--layer", "12", "--head", "3")
    assert done.code == 0
    assert done.out.startswith("smollm2, layer 12, as the model runs it; weights equal the model's to ")
    assert len(rows(done.out)) == 14
    assert call("show", "smollm2:0").out.startswith("storage    Grouped(num_heads=9, num_kv_heads=3, head_dim=64)")
