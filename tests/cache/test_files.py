"""A cache in a file: it comes back to the bit, or the file is refused with the reason."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import polyhead as ph
from polyhead.cache import Cache, ContextCache, load
from polyhead.cache.files import HEADER, VERSION
from tests.cache.helpers import KINDS, Kind, Tokens, assert_same_content, by_kind, content
from tests.inputs import spec
from tests.tolerances import assert_close


def read(path: Path, kind: Kind) -> Cache:
    return load(path, kind.spec, source=kind.source)


def read_as(path: Path, name: str) -> Cache:
    return read(path, KINDS[name])


# --- there and back


@by_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_saved_comes_back_to_the_bit(kind: Kind, dtype: torch.dtype, tmp_path: Path) -> None:
    tokens = Tokens.draw(kind, dtype=dtype)
    cache = tokens.filled(7, max_seq_len=12)
    tokens.decode(cache, 7, 9, lengths=[2, 1])
    before = content(cache)
    cache.save(tmp_path / "a.safetensors")
    assert_same_content(content(cache), before)
    again = read(tmp_path / "a.safetensors", kind)
    assert type(again) is type(cache)
    assert (again.dtype, again.device, again.max_seq_len) == (cache.dtype, cache.device, cache.max_seq_len)
    assert_same_content(content(again), before, besides=["held"])


@by_kind
@pytest.mark.parametrize("longest", [None, 12])
def test_a_read_cache_goes_on_as_the_saved_one(kind: Kind, longest: int | None, tmp_path: Path) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.filled(7, max_seq_len=longest)
    cache.save(tmp_path / "a")
    again = read(tmp_path / "a", kind)
    for one in (cache, again):
        one.reorder([1, 0])
        one.reorder([1, 0])
        assert_close(tokens.decode(one, 7), tokens.expected()[:, :, 7:], torch.float32)
    assert_same_content(content(again), content(cache), besides=["held", "allocated"])


@by_kind
def test_sequences_of_unlike_lengths_come_back(kind: Kind, tmp_path: Path) -> None:
    tokens = Tokens.draw(kind)
    cache = tokens.new_cache()
    tokens.decode(cache, 0, 5, lengths=[5, 0])
    cache.save(tmp_path / "a")
    again = read(tmp_path / "a", kind)
    assert again.lengths == (5, 0)
    piece = tokens.ragged(cache, [5, 0], [4, 4])
    output = ph.attend(**piece, spec=kind.spec, params=tokens.params(), cache=again)
    assert_close(output[0], tokens.expected()[0, :, 5:9], torch.float32)
    assert_close(output[1], tokens.expected()[1, :, :4], torch.float32)


@by_kind
def test_a_mask_comes_back(kind: Kind, tmp_path: Path) -> None:
    mask = np.random.default_rng(1).random((2, 5 if kind.source == "cross" else 12)) < 0.6
    tokens = Tokens.draw(kind).masked(mask)
    cache = tokens.new_cache()
    tokens.decode(cache, 0, 5, key_mask=torch.tensor(mask[:, :5]))
    cache.save(tmp_path / "a")
    again = read(tmp_path / "a", kind)
    later = mask[:, 5:]
    assert_close(tokens.decode(again, 5, key_mask=torch.tensor(later)), tokens.expected()[:, :, 5:], torch.float32)


@by_kind
@pytest.mark.parametrize("batch", [0, 2])
def test_an_empty_cache_comes_back_empty(kind: Kind, batch: int, tmp_path: Path) -> None:
    cache = Tokens.draw(kind, batch=batch).new_cache(max_seq_len=20)
    cache.save(tmp_path / "a")
    again = read(tmp_path / "a", kind)
    assert_same_content(content(again), content(cache), besides=["held"])
    if kind.kept is ContextCache:
        assert not again.has_context
    tokens = Tokens.draw(kind, batch=batch)
    assert_close(tokens.decode(again, 0), tokens.expected(), torch.float32)


def test_only_what_is_there_is_written(tmp_path: Path) -> None:
    tokens = Tokens.draw(KINDS["growing"])
    cache = tokens.filled(6, max_seq_len=10_000)
    cache.save(tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 2 * cache.used_bytes
    assert read_as(tmp_path / "a", "growing").allocated_bytes == cache.allocated_bytes


def test_what_a_rolling_cache_could_crop_it_still_can(tmp_path: Path) -> None:
    kind = KINDS["rolling latent"]
    tokens = Tokens.draw(kind, 20)
    cache = tokens.filled(15)
    cache.crop(14)
    cache.save(tmp_path / "a")
    again = read(tmp_path / "a", kind)
    assert (again.slack, again.lengths) == (2, (14, 14))
    with pytest.raises(ph.UnsupportedError, match="crop cannot leave 12 tokens of sequence 0, once 15 long"):
        again.crop(12)
    again.crop(13)
    assert_close(tokens.decode(again, 13), tokens.expected()[:, :, 13:], torch.float32)


@by_kind
def test_a_layer_reads_its_own_caches(kind: Kind, tmp_path: Path) -> None:
    layer = ph.Attention(ph.LayerSpec(attention=kind.spec, embed_dim=16, source=kind.source))
    x = torch.randn(2, 6, 16)
    context = {"context": torch.randn(2, 4, 16)} if kind.source == "cross" else {}
    cache = layer.new_cache(2)
    layer(x[:, :4], cache=cache, **context)
    cache.save(str(tmp_path / "a"))
    again = layer.load_cache(str(tmp_path / "a"))
    assert_close(layer(x[:, 4:], cache=again), layer(x, **context)[:, 4:], torch.float32)


@by_kind
def test_a_read_cache_may_be_read_and_used_in_inference_mode_or_out_of_it(kind: Kind, tmp_path: Path) -> None:
    tokens = Tokens.draw(kind)
    tokens.filled(7).save(tmp_path / "a")
    with torch.inference_mode():
        again = read(tmp_path / "a", kind)
    again.reorder([1, 0])
    again.reorder([1, 0])
    assert_close(tokens.decode(again, 7), tokens.expected()[:, :, 7:], torch.float32)


@by_kind
def test_a_read_cache_no_longer_depends_on_its_file(kind: Kind, tmp_path: Path) -> None:
    tokens = Tokens.draw(kind)
    path = tmp_path / "a"
    tokens.filled(7).save(path)
    again = read(path, kind)
    with path.open("r+b") as stream:  # the same file written over, not another put in its place
        stream.write(b"\xff" * path.stat().st_size)
    assert_close(tokens.decode(again, 7), tokens.expected()[:, :, 7:], torch.float32)


# --- writing


def test_a_folder_that_does_not_exist_is_made(tmp_path: Path) -> None:
    cache = Tokens.draw(KINDS["growing"]).filled(3)
    path = tmp_path / "not" / "yet" / "a.safetensors"
    cache.save(path)
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_a_file_is_replaced_by_the_next(tmp_path: Path) -> None:
    tokens, path = Tokens.draw(KINDS["growing"]), tmp_path / "a"
    tokens.filled(9).save(path)
    tokens.filled(3).save(path)
    assert read_as(path, "growing").lengths == (3, 3)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt("stopped")], ids=repr)
def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    tokens, path = Tokens.draw(KINDS["growing"]), tmp_path / "a"
    cache = tokens.filled(3)
    cache.save(path)
    old = path.read_bytes()

    def half(tensors: Any, filename: Any, metadata: Any) -> None:
        Path(filename).write_bytes(safetensors.torch.save(tensors, metadata)[:100])
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    tokens.decode(cache, 3, 6)
    with pytest.raises(type(error), match=str(error)):
        cache.save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_cannot_be_saved_to(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Tokens.draw(KINDS["growing"]).filled(3).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- files that are refused


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file of each kind, six tokens of two sequences."""
    folder = tmp_path_factory.mktemp("caches")
    for name, kind in KINDS.items():
        Tokens.draw(kind).filled(6).save(folder / name)
    return {name: folder / name for name in KINDS}


by_name = pytest.mark.parametrize("name", KINDS, ids=[name.replace(" ", "-") for name in KINDS])
by_class = pytest.mark.parametrize("name", ["growing", "rolling", "state", "context"])


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    for path in (tmp_path / "a", tmp_path):
        with pytest.raises(ph.CheckpointError, match=f"there is no file {path}; write one with cache.save"):
            read_as(path, "growing")


@by_name
@pytest.mark.parametrize("kept", [0.0, 0.003, 0.1, 0.5, 0.9, 1.0])
def test_a_file_that_was_cut_short_says_so(name: str, kept: float, saved: dict[str, Path], tmp_path: Path) -> None:
    data = saved[name].read_bytes()
    (tmp_path / "a").write_bytes(data[: int(kept * (len(data) - 1))])
    with pytest.raises(ph.CheckpointError, match=r"/a is cut short, or no safetensors file .*; save it again"):
        read_as(tmp_path / "a", name)


@by_name
def test_a_file_with_something_after_its_end_is_refused(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(saved[name].read_bytes() + b"\0" * 8)
    with pytest.raises(ph.CheckpointError, match="cut short, or no safetensors file"):
        read_as(tmp_path / "a", name)


@pytest.mark.parametrize("data", [b"{}", b"\0" * 100, b"no tensors here\n" * 20, b"\xff" * 64], ids=repr)
def test_what_is_no_safetensors_file_says_so(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ph.CheckpointError, match="cut short, or no safetensors file"):
        read_as(tmp_path / "a", "growing")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=repr)
def test_a_safetensors_file_of_something_else_says_so(metadata: Any, tmp_path: Path) -> None:
    safetensors.torch.save_file({"key": torch.zeros(2, 2, 6, 8)}, tmp_path / "a", metadata)
    with pytest.raises(ph.CheckpointError, match=r"/a holds no cache; write one with cache.save\(path\)"):
        read_as(tmp_path / "a", "growing")


def test_another_specs_cache_is_refused_naming_both(saved: dict[str, Path]) -> None:
    other = spec("gqa", pattern=ph.Causal(), position=ph.Rotary(theta=777.0))
    with pytest.raises(ph.SpecError, match=r"saved from another spec, .*10000\.0.*this one is .*777\.0"):
        load(saved["growing"], other)
    layer = ph.Attention(other, embed_dim=8)
    with pytest.raises(ph.SpecError, match=r"saved from another spec, .*10000\.0.*this one is .*777\.0"):
        layer.load_cache(saved["growing"])


def test_another_sources_cache_is_refused_naming_both(saved: dict[str, Path]) -> None:
    causal = spec("gqa", pattern=ph.Causal(), position=ph.Rotary())
    with pytest.raises(ph.SpecError, match=r"with source='self'; this one is .* with source='cross'"):
        load(saved["growing"], causal, source="cross")


def rewritten(path: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Write a file again with another header of ours, and the same tensors."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    new = change(json.loads(header["__metadata__"][HEADER]))
    header["__metadata__"][HEADER] = new if isinstance(new, str) else json.dumps(new)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    to.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return to


@by_name
def test_an_unchanged_header_is_read(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    again = read_as(rewritten(saved[name], tmp_path / "a", lambda header: header), name)
    assert_same_content(content(again), content(read_as(saved[name], name)), besides=["held"])


def test_a_newer_version_says_which_is_read(saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved["growing"], tmp_path / "a", lambda header: {**header, "version": VERSION + 1})
    with pytest.raises(
        ph.CheckpointError, match=f"version {VERSION + 1} and this polyhead reads up to {VERSION}; install a newer"
    ):
        read_as(path, "growing")


LIES: dict[str, dict[str, Any]] = {
    "a sequence more": {"lengths": [6, 6, 6]},
    "a sequence fewer": {"lengths": [6]},
    "a negative length": {"lengths": [-1, 6]},
    "all lengths negative": {"lengths": [-1, -1]},
    "a length that is no number": {"lengths": ["6", 6]},
    "a length with a fraction": {"lengths": [5.5, 6]},
    "no list of lengths": {"lengths": 6},
    "no dtype of that name": {"dtype": "float31"},
    "no dtype at all": {"dtype": "nn"},
    "a dtype that is a number": {"dtype": 3},
    "a version that is text": {"version": "1"},
    "no version": {"version": None},
    "options that are none": {"options": None},
    "a max_seq_len that is none": {"options": {"max_seq_len": "long", "slack": -1, "longest": None}},
}


@by_class
@pytest.mark.parametrize("lie", LIES.values(), ids=[name.replace(" ", "-") for name in LIES])
def test_a_header_that_lies_is_refused(lie: dict[str, Any], name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved[name], tmp_path / "a", lambda header: {**header, **lie})
    with pytest.raises(ph.CheckpointError, match="/a "):
        read_as(path, name)


@pytest.mark.parametrize("key", ["version", "spec", "source", "dtype", "lengths", "options"])
def test_a_header_that_lacks_something_is_refused(key: str, saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved["growing"], tmp_path / "a", lambda header: {k: v for k, v in header.items() if k != key})
    with pytest.raises(ph.CheckpointError, match="/a "):
        read_as(path, "growing")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"cache"'])
def test_a_header_that_is_no_header_is_refused(text: str, saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved["growing"], tmp_path / "a", lambda header: text)
    with pytest.raises(ph.CheckpointError, match="/a "):
        read_as(path, "growing")


@pytest.mark.parametrize("name", ["growing", "growing latent", "rolling", "context"])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_header_that_names_another_dtype_is_refused(
    name: str, dtype: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    path = rewritten(saved[name], tmp_path / "a", lambda header: {**header, "dtype": dtype})
    with pytest.raises(
        ph.CheckpointError, match=rf"/a does not hold what its header says: .* is torch\.float32 .* torch\.{dtype} "
    ):
        read_as(path, name)


@pytest.mark.parametrize("name", ["growing", "growing latent"])
@pytest.mark.parametrize("lengths", [[7, 6], [5, 5], [0, 0]])
def test_a_header_that_names_other_lengths_is_refused(
    name: str, lengths: list[int], saved: dict[str, Path], tmp_path: Path
) -> None:
    path = rewritten(saved[name], tmp_path / "a", lambda header: {**header, "lengths": lengths})
    longest = max(lengths)
    with pytest.raises(
        ph.CheckpointError, match=rf"header says: its 'key' is .*, 6, [0-9]+\] and should be .*, {longest}, [0-9]+\]"
    ):
        read_as(path, name)


def test_lengths_that_no_memory_holds_are_refused_without_asking_for_it(saved: dict[str, Path], tmp_path: Path) -> None:
    path = rewritten(saved["growing"], tmp_path / "a", lambda header: {**header, "lengths": [10**13, 6]})
    with pytest.raises(ph.CheckpointError, match="/a does not hold what its header says"):
        read_as(path, "growing")


OPTIONS = {
    "growing": {"max_seq_len": 3},
    "state": {"max_seq_len": 3},
    "rolling": {"longest": [6]},
    "rolling first": {"longest": [1, 1]},
    "rolling latent": {"longest": "ab"},
    "context": {},
    "context latent": {"context_length": None},
}


@pytest.mark.parametrize(("name", "lie"), OPTIONS.items(), ids=[name.replace(" ", "-") for name in OPTIONS])
def test_options_that_do_not_go_with_the_rest_are_refused(
    name: str, lie: dict[str, Any], saved: dict[str, Path], tmp_path: Path
) -> None:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        return {**header, "options": {**header["options"], **lie} if lie else {}}

    path = rewritten(saved[name], tmp_path / "a", change)
    with pytest.raises(ph.CheckpointError, match="/a "):
        read_as(path, name)


@by_name
def test_a_file_that_lacks_a_tensor_is_refused(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    with safetensors.safe_open(saved[name], framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    lost = max(tensors)
    one_less = {key: x for key, x in tensors.items() if key != lost}
    safetensors.torch.save_file(one_less, tmp_path / "less", metadata)
    with pytest.raises(ph.CheckpointError, match=f"/less does not hold what its header says.*should hold .*'{lost}'"):
        read_as(tmp_path / "less", name)
    safetensors.torch.save_file({**tensors, "more": torch.zeros(2)}, tmp_path / "more", metadata)
    with pytest.raises(ph.CheckpointError, match=r"/more does not hold what its header says: it holds .*'more'"):
        read_as(tmp_path / "more", name)
