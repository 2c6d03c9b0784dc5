"""`polyhead show`: a mechanism explained, a model layer by layer, a spec printed; and every way of naming a spec."""

from __future__ import annotations

import json
import subprocess
import sys
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


# --- a model --------------------------------------------------------------------------------------

LLAMA = """\
Llama 3 8B  llama-3-8b
llama, 32 layers of width 4,096, a vocabulary of 128,256, up to 8,192 tokens
8,030,261,248 parameters

layers 0 to 31:
  storage    Grouped(num_heads=32, num_kv_heads=8, head_dim=128)
  position   Rotary(theta=500000.0)
  pattern    Causal()
  weighting  Softmax()
  cache      growing, 2,048 numbers a token
  learns     q_proj.weight [4096, 4096], k_proj.weight [1024, 4096], v_proj.weight [1024, 4096], o_proj.weight \
[4096, 4096]

cache      536,870,912 numbers for 8,192 tokens in all layers, 1.00 GiB in bfloat16
sources    layers, embed_dim, vocab_size, max_seq_len: config.json of meta-llama/Meta-Llama-3-8B
           parameters: counted from the same fields, as LlamaForCausalLM of transformers holds them
"""


def test_a_published_model(call: Polyhead) -> None:
    assert call("show", "llama-3-8b") == (0, LLAMA, "")
    assert call("show", "Llama-3-8B").out == LLAMA


def test_layers_that_differ_say_in_what(call: Polyhead) -> None:
    blocks = call("show", "gemma-2-9b").out.split("\n\n")
    assert blocks[1].splitlines()[0] == "layers 0, 2, … 40:"
    assert "  pattern    SlidingWindow(left=4095, right=0)\n" in blocks[1]
    assert "  cache      rolling, 4,096 numbers a token, of at most 4,096 tokens\n" in blocks[1]
    assert blocks[1].endswith(
        "\nlayers 1, 3, … 41, as layer 0 but for:\n  pattern    Causal()\n  cache      growing, 4,096 numbers a token"
    )
    numbers = 21 * 4096 * (4096 + 8192)  # the window's layers keep the window alone
    assert blocks[2].startswith(f"cache      {numbers:,} numbers for 8,192 tokens in all layers, 1.97 GiB")


def test_a_model_of_several_stacks(call: Polyhead) -> None:
    _, encoder, decoder, cross, _ = call("show", "t5-base").out.split("\n\n")
    assert encoder.startswith("encoder, layers 0 to 11:\n")
    assert "cache      none, since all tokens come at once" in encoder
    assert decoder.startswith("layers 0 to 11:\n")
    assert "position   RelativeBias.t5(bidirectional=False)" in decoder
    assert cross.startswith("attention to the encoder, layers 0 to 11:\n")
    assert "cache      context, 1,536 numbers a token" in cross


def test_parameters_that_a_token_does_not_need(call: Polyhead) -> None:
    assert "\n46,702,792,704 parameters, 12,879,925,248 of them per token\n" in call("show", "mixtral-8x7b").out


def test_an_encoder_has_no_cache(call: Polyhead) -> None:
    assert "GiB" not in call("show", "bigbird-base").out


def config(tmp_path: Path, **fields: Any) -> Path:
    given = {"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    given |= {"num_hidden_layers": 5, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    given |= {"rope_theta": 1e4, "vocab_size": 100, "intermediate_size": 48}
    (tmp_path / "mine").mkdir(exist_ok=True)
    path = tmp_path / "mine" / "config.json"
    path.write_text(json.dumps(given | fields), encoding="utf-8")
    return path


def test_a_config_in_a_file(call: Polyhead, tmp_path: Path) -> None:
    path = config(tmp_path)
    done = call("show", path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("mine, a qwen2  mine\nqwen2, 5 layers of width 64, a vocabulary of 100\n")
    assert "\nlayers 0 to 2:\n" in done.out
    assert "\nlayers 3 and 4, as layer 0 but for:\n" in done.out
    assert f"sources    layers, embed_dim, vocab_size: {path}\n" in done.out
    assert "numbers for" not in done.out  # no length is named
    renamed = path.rename(tmp_path / "mine" / "other.json")
    assert call("show", renamed).out.splitlines()[:3] == done.out.splitlines()[:3]


def test_a_config_in_a_directory(call: Polyhead, tmp_path: Path) -> None:
    path = config(tmp_path)
    assert call("show", path.parent).out == call("show", path).out


@pytest.mark.parametrize(
    ("types", "heading"),
    [
        ("sfsff", "layers 1, 3 and 4, as layer 0 but for:"),
        ("ssfss", "layer 2, as layer 0 but for:"),
        ("fsfsf", "layers 1 and 3, as layer 0 but for:"),
    ],
)
def test_how_layers_are_numbered(call: Polyhead, tmp_path: Path, types: str, heading: str) -> None:
    names = {"s": "sliding_attention", "f": "full_attention"}
    path = config(tmp_path, layer_types=[names[letter] for letter in types])
    assert f"\n{heading}\n" in call("show", path).out


@pytest.mark.parametrize("name", ["gemma-2-2b", "t5-base", "bigbird-base"])
def test_json_of_a_model(call: Polyhead, name: str) -> None:
    model = ph.model(name)
    data = json.loads(call("show", name, "--json").out)
    assert data.pop("schema") == 1
    stacks: dict[str, dict[int, ph.LayerSpec]] = {"encoder_layers": {}, "layers": {}, "cross_layers": {}}
    for group in data.pop("groups"):
        stacks[group["stack"]] |= dict.fromkeys(group["layers"], ph.LayerSpec.from_json(json.dumps(group["spec"])))
    for stack, layers in stacks.items():
        assert tuple(layer for _, layer in sorted(layers.items())) == getattr(model, stack)
    assert data == {field: getattr(model, field) for field in data}
    assert data.keys() >= {"name", "title", "parameters", "active_parameters", "sources"}


def test_json_of_a_cache(call: Polyhead) -> None:
    groups = json.loads(call("show", "gemma-2-2b", "--json").out)["groups"]
    rolling, growing = (
        {"kind": kind, "numbers": 2048, "left": left, "first": 0}
        for kind, left in (("rolling", 4095), ("growing", None))
    )
    assert [group["cache"] for group in groups] == [rolling, growing]
    assert json.loads(call("show", "bigbird-base", "--json").out)["groups"][0]["cache"] is None


def test_a_layer_of_a_published_model(call: Polyhead) -> None:
    done = call("show", "gemma-2-9b:3")
    assert done.out.splitlines()[2] == "pattern    Causal()"
    assert ph.AttentionSpec.from_json(call("show", "gemma-2-9b:0", "--json").out) == (
        ph.model("gemma-2-9b").layers[0].attention
    )


def test_a_layer_of_a_config(call: Polyhead, tmp_path: Path) -> None:
    path = config(tmp_path)
    for text in (f"{path}:4", f"{path.parent}:4"):
        assert "pattern    SlidingWindow(left=7, right=0)" in call("show", text).out


@pytest.mark.parametrize("arguments", [["show", "llama-3-8b"], ["show", "llama-3-8b:3"], ["list", "--models"]])
def test_models_need_no_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from polyhead.cli.main import main
try:
    main({arguments!r})
except SystemExit as stop:
    sys.exit(stop.code or print({{"torch", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert len(done.stdout.splitlines()) > 5


# --- what is none ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "gqaa",
            "no mechanism or model is called 'gqaa'; did you mean gqa? (a spec may also be MODEL:LAYER or a JSON ",
        ),
        ("16", "no mechanism or model is called '16'; use one of scaled-dot-product, mha, "),
        ("llama-3-8", "no mechanism or model is called 'llama-3-8'; did you mean llama-3-8b or "),
        ("nowhere.json", "cannot read nowhere.json: No such file or directory"),
        ("nowhere:0", "'nowhere' does not exist, and nothing is downloaded; give a directory in transformers' format"),
        ("gqa:x", "no mechanism or model is called 'gqa:x'"),
        ("llama-3-8b:32", "llama-3-8b has layers 0 to 31, and 32 was asked for"),
        ("no/config.json", "cannot read no/config.json: No such file or directory"),
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


def test_a_name_that_is_nearly_a_models(call: Polyhead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("show", "llama-3-8:3")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("polyhead: 'llama-3-8' does not exist, and nothing is downloaded; give a directory")
    assert "; no published model is called 'llama-3-8'; did you mean llama-3-8b or " in done.err


def test_a_model_where_a_spec_is_needed(call: Polyhead) -> None:
    done = call("explain", "llama-3-8b")
    assert (done.code, done.out) == (2, "")
    assert done.err == "polyhead: llama-3-8b is a model, and its layers may differ; name one, such as llama-3-8b:0\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("{}", "config.json has no model_type; is it a transformers model's?"),
        ('{"model_type": "rwkv"}', "model_type='rwkv' is not read; what is read: llama, "),
    ],
)
def test_a_config_that_is_none(call: Polyhead, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    for path in (tmp_path, tmp_path / "config.json"):
        done = call("show", path)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
