"""`polyhead plan`: the answer first, a table, sentences, JSON, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import polyhead as ph
from polyhead.planner.data import to_data
from polyhead.planner.words import changes, sentences
from tests.cli.conftest import Polyhead

ASKED = ("plan", "--model", "llama-3-8b", "--context", "131072", "--device", "a100-80")


def test_the_answer_comes_first(call: Polyhead) -> None:
    done = call(*ASKED)
    assert (done.code, done.err) == (0, "")
    heading, _, answer, _, columns, own, *_ = done.out.splitlines()
    assert heading.startswith("Llama 3 8B, 131,072 tokens, on NVIDIA A100 SXM 80 GB, bf16")
    assert answer.startswith("Keep GQA-8 + RoPE + causal + softmax, trained on 8,192 tokens")
    assert columns.split()[:2] == ["stack", "cache"]
    assert own.startswith("GQA-8 + RoPE + causal + softmax (its own)")
    found = ph.plan("llama-3-8b", context=131_072, device="a100-80")
    whole = " ".join(done.out.split())
    for sentence in (*sentences(found), *changes(found)):
        assert sentence in whole


def test_json_is_the_whole_plan(call: Polyhead) -> None:
    done = call(*ASKED, "--json")
    assert json.loads(done.out) == json.loads(
        json.dumps(to_data(ph.plan("llama-3-8b", context=131_072, device="a100-80")))
    )


def test_nothing_fits(call: Polyhead) -> None:
    asked = ("plan", "--model", "llama-3-70b", "--context", "8192", "--device", "l4")
    done = call(*asked)
    assert done.code == 1
    assert "Nothing fits." in done.out
    as_json = call(*asked, "--json")
    data = json.loads(as_json.out)
    assert (as_json.code, data["fits"], data["cache_bytes_per_token"]) == (1, False, 327_680)
    assert "GiB too large" in data["nearest"]


def test_what_fits(call: Polyhead) -> None:
    done = call("plan", "--model", "llama-3-8b", "--what-fits", "context", "--device", "rtx-4090")
    assert (done.code, done.err) == (0, "")
    assert "GQA-8 + RoPE + causal + softmax (as it is)" in done.out.splitlines()[1]
    as_json = call(
        "plan", "--model", "llama-3-8b", "--what-fits", "batch", "--context", "8192", "--device", "l4", "--json"
    )
    assert json.loads(as_json.out)["what_fits"] == "batch"
    none = call("plan", "--model", "llama-3-70b", "--what-fits", "context", "--device", "l4")
    assert none.code == 1
    assert "nothing fits" in none.err


def test_a_config_of_ones_own(call: Polyhead, tmp_path: Path) -> None:
    config = dict(ph.model("llama-3-8b").config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    done = call("plan", "--model", str(tmp_path), "--device", "a100-80", "--json")
    assert json.loads(done.out)["context"] == 8192  # the longest that the config names
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "rwkv"}), encoding="utf-8")
    wrong = call("plan", "--model", str(tmp_path), "--device", "a100-80")
    assert wrong.code == 2
    assert "model_type='rwkv'" in wrong.err


def test_a_picture(call: Polyhead, tmp_path: Path) -> None:
    assert call(*ASKED, "--plot", str(tmp_path / "plan.svg")).code == 0
    assert "<svg" in (tmp_path / "plan.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "llama-9"], "no model is called"),
        (["--model", "llama-3-8b", "--context", "0"], "context=0"),
        (["--model", "llama-3-8b", "--precision", "fp8"], "no rate is known for fp8"),
        (["--model", "llama-3-8b", "--precision", "cache=fp9"], "did you mean fp8"),
        (["--model", "llama-3-8b", "--plot", "plan.pdf"], ".png or .svg"),
        (["--model", "llama-3-8b", "--device", "missing.json"], "missing.json"),
        (["--model", "/nope/config.json"], "cannot read /nope/config.json"),
        (["--model", "llama-3-8b", "--top", "0"], "--top"),
        (["--model", "llama-3-8b", "--what-fits", "context", "--context", "9"], "--context says nothing beside"),
        ([], "--model"),
    ],
)
def test_what_is_wrong_is_said(call: Polyhead, options: list[str], said: str) -> None:
    done = call("plan", *(["--device", "a100-80"] if "--device" not in options else []), *options)
    assert done.code == 2
    assert done.out == ""
    assert said in done.err


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from polyhead.cli.main import _run; "
        f"_run({list(ASKED)!r}); print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stderr.strip() == "False"
