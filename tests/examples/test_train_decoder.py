"""examples/train_decoder.py: each stack learns, its caches change nothing, and it says where one fails."""

from __future__ import annotations

import json
import math
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import polyhead as ph
from examples import train_decoder

SCRIPT = Path(train_decoder.__file__)
STORED = 16 + 48 - 1  # prompt and generated tokens; the last one is never read
BYTES = {  # two layers of float32
    "mha": ("GrowingCache", STORED * 2 * 4 * 16),
    "gqa-window": ("RollingCache", 16 * 2 * 2 * 16),
    "mla": ("GrowingCache", STORED * (24 + 8)),
    "differential": ("GrowingCache", STORED * 2 * 2 * (8 + 8)),
    "linear": ("StateCache", 4 * (16 * 16 + 16)),
}
ROW: dict[str, Any] = {
    "stack": "a", "parameters": 1, "cache": "C", "bytes": 2, "entropy": 3.0, "loss": 2.0, "difference": 0.0,
    "equal": True, "text": "",
}  # fmt: skip


def call(*arguments: str) -> Result:
    return CliRunner().invoke(train_decoder.main, arguments)


@pytest.mark.parametrize("stack", BYTES)
def test_a_stack_learns_and_generates_the_same_with_its_caches(stack: str) -> None:
    result = call("--stack", stack, "--steps", "20", "--json")
    assert result.exit_code == 0, result.stderr
    [row] = json.loads(result.stdout)
    assert row["stack"] == stack
    assert row["loss"] < row["entropy"]
    assert row["equal"] is True
    assert 0 <= row["difference"] < 1e-4
    assert (row["cache"], row["bytes"]) == (BYTES[stack][0], BYTES[stack][1] * 2 * 4)
    assert len(row["text"]) >= STORED
    assert len(set(row["text"])) > 10  # what repeats itself would hide a difference
    assert "step 20: loss" in result.stderr


def test_all_stacks_run_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_decoder, "run", lambda stack, steps, seed: ROW | {"stack": stack})
    result = call()
    assert result.exit_code == 0
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["stack", "parameters", "cache", "bytes", "entropy", "loss", "equal"]
    assert [row.split()[0] for row in rows] == list(BYTES)
    assert rows[0].split()[1:] == ["1", "C", "2", "3.00", "2.00", "True"]
    assert rows[0].index("True") == head.index("equal")


@pytest.mark.parametrize("wrong", [{"loss": 3.0}, {"loss": math.nan}, {"equal": False}])
def test_one_row_that_is_wrong_fails_all(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]) -> None:
    monkeypatch.setattr(train_decoder, "run", lambda stack, *_: ROW | (wrong if stack == "mla" else {}))
    result = call()
    assert result.exit_code == 1
    assert "a loss is not below the entropy, or caches change what is generated" in result.stderr


@pytest.mark.parametrize("stack", BYTES)
def test_a_cache_that_holds_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch, stack: str) -> None:
    new_cache = ph.Attention.new_cache

    def with_a_past(layer: ph.Attention, batch: int, max_seq_len: int) -> Any:
        cache = new_cache(layer, batch, max_seq_len + 1)
        layer(torch.ones(batch, 1, layer.spec.embed_dim), cache=cache)
        return cache

    monkeypatch.setattr(ph.Attention, "new_cache", with_a_past)
    row = train_decoder.run(stack, steps=0, seed=0)
    assert row["equal"] is False
    assert row["difference"] > 1e-2


def test_the_entropy_is_that_of_the_bytes_which_the_loss_is_about() -> None:
    text = torch.tensor(list(b"abracadabra" * 20))
    counted = [byte for start in range(0, 192, 64) for byte in text[start + 1 : start + 64].tolist()]
    shares = [count / len(counted) for count in Counter(counted).values()]
    model = train_decoder.Decoder("mha")
    torch.nn.init.zeros_(model.embedding.weight)  # every logit 0
    scores = train_decoder.evaluate(model, text)
    assert scores["entropy"] == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-6)
    assert scores["loss"] == pytest.approx(math.log(256), abs=1e-6)


def test_as_a_program_it_fails_where_nothing_was_learned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--stack", "mla", "--steps", "0", "--json"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stop.value.code == 1
    out, err = capsys.readouterr()
    [row] = json.loads(out)
    assert row["loss"] > row["entropy"]
    assert row["equal"] is True
    assert "Error: a loss is not below" in err


def test_it_stays_short_enough_to_copy() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 150
