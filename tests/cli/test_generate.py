"""`polyhead generate`: the text on stdout as it comes, its figures on stderr or as JSON, and what to type instead."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from polyhead import hf
from polyhead.hf import Sampling, adopt, generate, load
from tests.cli.conftest import Polyhead
from tests.cli.test_compare import refused
from tests.cli.test_main import imported
from tests.hf.conftest import SHAPE, MakeCheckpoint, save

transformers = pytest.importorskip("transformers", reason="transformers runs the models")

PROMPT = "the cat sat on the mat"


@pytest.fixture
def llama(checkpoint: MakeCheckpoint) -> Path:
    return checkpoint("llama", eos_token_id=None)


def typed(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """Let stdin bring a text."""
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# --- the text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [[], ["--adopt"], ["--attention", "eager"], ["--attention", "sdpa"]], ids=" ".join)
def test_the_text_goes_to_stdout_and_its_figures_to_stderr(call: Polyhead, llama: Path, ways: list[str]) -> None:
    done = call("generate", llama, PROMPT, "--max-new-tokens", "5", *ways)
    expected = generate(load(llama), PROMPT, max_new_tokens=5)
    assert (done.code, done.out) == (0, expected.text + "\n")
    first, second = done.err.splitlines()
    assert first.startswith("5 new tokens (--max-new-tokens reached), ")
    assert " tokens/s, prefill of 6 tokens in " in first
    assert second.startswith("cache of 2 layers: 2.50 KiB (2,560 bytes) used, ")  # 2·2·2·8 numbers for 10 tokens


def test_pieces_come_one_by_one(call: Polyhead, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr("click.echo", lambda message="", nl=True, err=False: written.append(message + "\n" * nl))
    assert call("generate", llama, PROMPT, "--max-new-tokens", "5").code == 0
    assert len(written) > 3
    assert "".join(written) == generate(load(llama), PROMPT, max_new_tokens=5).text + "\n"


def test_a_prompt_can_be_piped_in(call: Polyhead, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = call("generate", llama, PROMPT).out
    typed(monkeypatch, PROMPT + "\n")
    assert call("generate", llama).out == expected


def test_a_draw_says_its_seed_and_can_be_repeated(call: Polyhead, llama: Path) -> None:
    drawn = call("generate", llama, PROMPT, "--sample", "--temperature", "3")
    seed = drawn.err.splitlines()[0].rpartition("seed ")[2]
    assert call("generate", llama, PROMPT, "--sample", "--temperature", "3", "--seed", seed).out == drawn.out
    assert call("generate", llama, PROMPT, "--sample", "--temperature", "3").out != drawn.out


def test_a_chat_needs_a_template(call: Polyhead, llama: Path) -> None:
    refused(call("generate", llama, PROMPT, "--chat"), "the tokenizer of llama has no chat template; give the text as")
    (llama / "chat_template.jinja").write_text("{% for turn in messages %}the {{ turn.content }}{% endfor %}")
    chat = json.loads(call("generate", llama, "cat sat on the mat", "--chat", "--json").out)
    plain = json.loads(call("generate", llama, PROMPT, "--json").out)
    assert (chat["token_ids"], chat["prompt_tokens"]) == (plain["token_ids"], 6)


def test_an_interrupted_text_stays(call: Polyhead, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: Any, on_text: Any, **asked: Any) -> None:
        on_text("half a")
        raise KeyboardInterrupt

    monkeypatch.setattr(hf, "generate", interrupted)
    done = call("generate", llama, PROMPT)
    assert (done.code, done.out) == (130, "half a\n")
    assert done.err.strip() == "polyhead: interrupted"


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ways", "adopted", "attention"), [([], False, "polyhead"), (["--adopt"], True, None)])
def test_json_has_the_text_and_the_figures(
    call: Polyhead, llama: Path, ways: list[str], adopted: bool, attention: str | None
) -> None:
    done = call("generate", llama, PROMPT, "--max-new-tokens", "7", "--json", *ways)
    data = json.loads(done.out)
    loaded = load(llama)
    if adopted:
        adopt(loaded.model)
    expected = generate(loaded, PROMPT, max_new_tokens=7)
    assert (done.code, done.err) == (0, "")
    assert (data["schema"], data["model"], data["adopted"], data["attention"]) == (1, "llama", adopted, attention)
    assert (data["prompt"], data["text"], data["token_ids"]) == (PROMPT, expected.text, list(expected.token_ids))
    assert (data["prompt_tokens"], data["new_tokens"], data["stopped"]) == (6, 7, "max_new_tokens")
    assert data["sampling"] is None
    assert data["tokens_per_second"] == 6 / data["decode_seconds"]
    assert data["prefill_seconds"] > 0
    head_dim = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
    assert data["cache"]["used_bytes"] == 2 * 2 * SHAPE["num_key_value_heads"] * head_dim * 4 * (6 + 7 - 1)
    assert expected.cache is not None
    assert data["cache"]["allocated_bytes"] == expected.cache.allocated
    assert (data["cache"]["allocated_bytes"] > data["cache"]["used_bytes"]) == adopted  # ours reserves room ahead
    assert data["cache"]["layers"] == 2


def test_json_of_a_draw_and_of_a_single_token(call: Polyhead, llama: Path) -> None:
    draw = ["--sample", "--top-k", "3", "--top-p", "0.9", "--seed", "5"]
    data = json.loads(call("generate", llama, PROMPT, "--json", "--max-new-tokens", "1", *draw).out)
    assert data["sampling"] == {"temperature": 1.0, "top_p": 0.9, "top_k": 3, "seed": 5}
    expected = generate(load(llama), PROMPT, max_new_tokens=1, sampling=Sampling(top_k=3, top_p=0.9, seed=5))
    assert data["token_ids"] == list(expected.token_ids)
    assert (data["new_tokens"], data["tokens_per_second"], data["decode_seconds"]) == (1, None, 0.0)


def test_the_dtype_is_the_caches_too(call: Polyhead, llama: Path) -> None:
    whole, half = (
        json.loads(call("generate", llama, PROMPT, "--json", "--max-new-tokens", "5", "--dtype", dtype).out)["cache"]
        for dtype in ("float32", "bfloat16")
    )
    assert whole["used_bytes"] == 2 * half["used_bytes"]


def test_a_model_without_a_cache_to_count(call: Polyhead, tmp_path: Path) -> None:
    config = transformers.RwkvConfig(vocab_size=80, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    path = save(transformers.RwkvForCausalLM(config), tmp_path / "rwkv")
    asked = ("generate", path, PROMPT, "--attention", "eager", "--max-new-tokens", "3")
    assert json.loads(call(*asked, "--json").out)["cache"] is None
    assert "cache" not in call(*asked).err


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adopt", "--attention", "sdpa"], "--adopt replaces the layers that would call --attention; give one of"),
        (["--temperature", "0.7"], "--temperature says how tokens are drawn; add --sample"),
        (["--top-k", "5"], "--top-k says how tokens are drawn; add --sample"),
        (["--seed", "5"], "--seed says how tokens are drawn; add --sample"),
        (["--max-new-tokens", "0"], "'--max-new-tokens': 0 is not in the range x>=1"),
        (["--sample", "--top-p", "1.5"], "'--top-p': 1.5 is not in the range 0<x<=1"),
        (["--dtype", "int8"], "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (["--attention", "sdqa"], "no attention is called 'sdqa'; did you mean sdpa"),
        (["--device", "nowhere"], "device='nowhere' cannot be used here"),
    ],
)
def test_options_that_mean_nothing(call: Polyhead, llama: Path, options: list[str], message: str) -> None:
    refused(call("generate", llama, PROMPT, *options), message)


def test_no_prompt(call: Polyhead, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(call("generate", llama, ""), "the prompt is empty; give at least one word")
    typed(monkeypatch, "\n")
    refused(call("generate", llama), "the prompt is empty; give at least one word")
    typed(monkeypatch, b"\xff\xfe")
    refused(call("generate", llama), "what was piped in is no text in UTF-8")
    typed(monkeypatch, "")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    refused(call("generate", llama), "there is no prompt; give one after MODEL, in quotes, or pipe one in")


def test_a_prompt_that_is_too_long(call: Polyhead, llama: Path) -> None:
    refused(call("generate", llama, " cat" * 65), "the prompt has 65 tokens and the model positions for 64; shorten it")


def test_a_model_that_is_not_there(call: Polyhead) -> None:
    refused(call("generate", "smolm2", PROMPT), "'smolm2' does not exist, and nothing is downloaded; give a directory")


BLOOM = {"vocab_size": 80, "hidden_size": 16, "n_layer": 1, "n_head": 2}
GPTJ = {"vocab_size": 80, "n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}
MAMBA = {"vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 1}
FALCON = {"vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = {"vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("kind", "fields", "options", "message"),
    [
        ("BloomForCausalLM", BLOOM, [], "names; type --adopt"),
        ("FalconForCausalLM", FALCON, [], "; type --adopt"),
        ("MambaForCausalLM", MAMBA, [], "names; type --attention eager"),
        ("GPTJForCausalLM", GPTJ, [], "GPTJForCausalLM does not take attention='polyhead' ('polyhead'); type --att"),
        ("GPTJForCausalLM", GPTJ, ["--attention", "sdpa"], "dot_product_attention yet); type --attention eager"),
        ("BertModel", BERT, [], "the architecture BertModel writes no text"),
        ("LlamaModel", SHAPE, [], "the architecture LlamaModel writes no text"),
    ],
)
def test_a_model_is_refused_before_its_weights_with_what_to_type(
    call: Polyhead, tmp_path: Path, kind: str, fields: dict[str, Any], options: list[str], message: str
) -> None:
    model_class = getattr(transformers, kind)
    path = save(model_class(model_class.config_class(**fields)), tmp_path / "model")
    (path / "model.safetensors").write_bytes(b"")
    refused(call("generate", path, PROMPT, *options), message)


def test_what_is_to_be_typed_works(call: Polyhead, tmp_path: Path) -> None:
    for kind, fields, options in (("Bloom", BLOOM, ["--adopt"]), ("GPTJ", GPTJ, ["--attention", "eager"])):
        config = getattr(transformers, f"{kind}Config")(**fields)
        path = save(getattr(transformers, f"{kind}ForCausalLM")(config), tmp_path / kind)
        assert call("generate", path, PROMPT, "--max-new-tokens", "3", *options).code == 0


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_extra(call: Polyhead, llama: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    done = call("generate", llama, PROMPT)
    assert (done.code, done.out) == (3, "")
    assert f"polyhead generate needs {package}, which is not installed; type: pip install 'polyhead[hf]'" in done.err


def test_help_imports_no_torch() -> None:
    assert not imported("generate", "--help") & {"numpy", "rich", "torch", "transformers", "polyhead.hf"}


@pytest.mark.model
@pytest.mark.usefixtures("smollm2")
def test_smollm2(call: Polyhead) -> None:
    done = call("generate", "smollm2", "The capital of France is", "--max-new-tokens", "2", "--adopt")
    assert (done.code, done.out) == (0, " Paris.\n")
