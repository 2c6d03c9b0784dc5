"""A GGUF file is converted once, whole or not at all, or refused with a reason."""

from __future__ import annotations

import importlib
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
from polyhead.hf.checks import cache_directory
from tests.hf import conftest
from tests.hf.conftest import TEXT

torch = pytest.importorskip("torch", reason="a model runs in torch")
transformers = pytest.importorskip("transformers", reason="transformers loads the models")

MODULE = importlib.import_module("polyhead.hf.gguf")
MakeGguf = Callable[..., Path]


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
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = loaded.model.state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    read = capture(loaded, "abcda", layer=1)
    assert (read.tokens, read.spec.attention.position.theta) == (("ab", "c", "d", "a"), 1000.0)  # type: ignore[union-attr]
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight


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
    with pytest.raises(CheckpointError, match=r"delete .*gguf-[0-9a-f]{16}, and the next call converts"):
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
    assert cache_directory() == tmp_path / "mine"
    monkeypatch.delenv("POLYHEAD_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "polyhead"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == tmp_path / ".cache" / "polyhead"


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


def test_a_gguf_file_with_weights_that_are_no_numbers(gguf_file: MakeGguf, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tiny.gguf gives model.layers.1.mlp.up_proj.weight values that are not"):
        locate(gguf_file(spoilt="blk.1.ffn_up.weight"))
    assert leftovers(cache) == []


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
