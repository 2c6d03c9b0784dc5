"""Arrays out of the bytes of a file: what NumPy and safetensors write is read, and nothing else is even allocated."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from polyhead.compare.inputs import Array
from polyhead.dashboard.arrays import MAX_BYTES, read_arrays
from polyhead.errors import ShapeError

ROWS = np.arange(12, dtype=np.float64).reshape(3, 4)
THREE = {"query": ROWS, "key": ROWS + 1, "value": ROWS + 2}


def npz(packed: bool = False, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(stream, **arrays)
    return stream.getvalue()


def archive(**files: bytes) -> bytes:
    """Return an archive of files whose bytes are given."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in files.items():
            written.writestr(f"{name}.npy", data)
    return stream.getvalue()


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def safetensors(header: Mapping[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ">f8", "i8", "i2", "u1", "?"])
def test_numpys_own_files_are_read(packed: bool, dtype: str) -> None:
    given = {name: array.astype(dtype) for name, array in THREE.items()}
    found = read_arrays(npz(packed, **given, tokens=np.array(["a", "bé", "猫"])))
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert found["tokens"] == ["a", "bé", "猫"]


@pytest.mark.parametrize("array", [np.asfortranarray(ROWS), ROWS[None], ROWS[:, :1], np.zeros((0, 4)), np.array(1.0)])
def test_layouts_and_shapes_are_kept(array: Array) -> None:
    np.testing.assert_array_equal(read_arrays(npz(query=array, key=ROWS, value=ROWS))["query"], array)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16"])
def test_safetensors_own_files_are_read(dtype: str) -> None:
    torch, library = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    given = {name: torch.from_numpy(array).to(getattr(torch, dtype)) for name, array in THREE.items()}
    found = read_arrays(library.save(given, metadata={"tokens": json.dumps(["a", "b", "猫"])}))
    for name, tensor in given.items():
        np.testing.assert_array_equal(found[name], tensor.double().numpy())
    assert found["tokens"] == ["a", "b", "猫"]


BOMB = npz(True, **{**THREE, "query": np.zeros((1, MAX_BYTES // 4), np.float64)})
"""64 MiB of nothing, which take 64 KiB packed."""


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    assert len(BOMB) < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(ShapeError, match="a dashboard takes 33,554,432; give fewer tokens"):
            read_arrays(BOMB)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_bomb_that_hides_its_size_is_not_unpacked_further() -> None:
    lying = bytearray(BOMB)
    true, told = struct.pack("<I", MAX_BYTES * 2 + 128), struct.pack("<I", 136)
    assert lying.count(true) == 2  # beside the array, and in the archive's list
    lying = bytearray(bytes(lying).replace(true, told))
    tracemalloc.start()
    try:
        with pytest.raises(ShapeError, match=r"query has shape .* its header is wrong|cannot be read as \.npz"):
            read_arrays(bytes(lying))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_nothing_is_unpickled() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            raise AssertionError("it was pickled for real")

    objects = archive(query=npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(print)))
    with pytest.raises(ShapeError, match="query is no array of plain numbers, or of texts; objects are not read"):
        read_arrays(objects)


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"
GOOD = HEADER.format("<f8", "(1, 1)")
REFUSED = {
    "empty": (b"", "neither an .npz nor a .safetensors file"),
    "text": (b"hello there, this is a text", "neither an .npz nor a .safetensors file"),
    "cut": (npz(**THREE)[:200], "cannot be read as .npz"),
    "one array": (npz(arr_0=ROWS), "there is an array 'arr_0'; there may be query, key, value, cross_query, tokens"),
    "lacks": (npz(query=ROWS, value=ROWS), "it lacks the array 'key'; it needs query, key and value"),
    "more": (npz(**THREE, extra=ROWS), "there is an array 'extra'"),
    "folder": (archive(**{"../query": npy(GOOD, bytes(8))}), "there is an array '../query'"),
    "complex": (npz(**{**THREE, "key": ROWS * 1j}), "key is no array of plain numbers"),
    "records": (npz(**{**THREE, "key": np.zeros(3, "f8,i4")}), "key is no array of plain numbers"),
    "dates": (npz(**{**THREE, "key": np.zeros(3, "M8[s]")}), "key is no array of plain numbers"),
    "texts": (npz(**{**THREE, "key": np.array(["a"])}), "key has dtype <U1; give an array of real numbers"),
    "numbers as tokens": (npz(**THREE, tokens=np.arange(3)), "tokens has dtype <i8; give an array of texts"),
    "square tokens": (npz(**THREE, tokens=np.array([["a"]])), "tokens are no list of texts"),
    "long token": (npz(**THREE, tokens=np.array(["a" * 257])), "has 257 characters; give at most 256"),
    "half a character": (npz(**THREE, tokens=np.array(["\ud800"])), "it holds half a character"),
    "no header": (archive(query=b"nothing"), "query is no array as NumPy writes it"),
    "version": (archive(query=npy(GOOD, bytes(8), version=9)), "query is no array as NumPy writes it"),
    "long header": (archive(query=npy(" " * 70_000, version=2)), "query has a header of 70000 bytes"),
    "code": (archive(query=npy("__import__('os').system('true')")), "objects are not read"),
    "no width": (archive(query=npy(HEADER.format("<f3", "(1,)"), bytes(3))), "has dtype <f3, which there is none of"),
    "wide": (archive(query=npy(HEADER.format("<f8", "(1, 1, 1, 1)"), bytes(8))), "its header is wrong"),
    "short": (archive(query=npy(HEADER.format("<f8", "(2, 1)"), bytes(8))), "its header is wrong"),
    "huge": (archive(query=npy(HEADER.format("<f8", "(999999999999, 999999999999)"), bytes(8))), "its header is wrong"),
    "tensors: header": (b"\xff" * 8 + b"{}", "neither an .npz nor a .safetensors file"),
    "tensors: list": (safetensors([1]), "names no arrays"),  # type: ignore[arg-type]
    "tensors: no JSON": ((4).to_bytes(8, "little") + b"nope", "cannot be read as .safetensors"),
    "tensors: deep": ((9000).to_bytes(8, "little") + b'{"a":' * 1800, "cannot be read as .safetensors|too deep"),
    "tensors: entry": (safetensors({"query": 3}), "query has no shape and offsets"),
    "tensors: shape": (safetensors({"query": {"shape": [-1], "data_offsets": [0, 8]}}), "no shape and offsets"),
    "tensors: true": (safetensors({"query": {"shape": [True], "data_offsets": [0, 8]}}), "no shape and offsets"),
    "tensors: dtype": (
        safetensors({"query": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 8]}}),
        "dtype 'Q9'; give",
    ),
    "tensors: past": (
        safetensors({"query": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}),
        "query lies at bytes 0 to 8 of 0",
    ),
    "tensors: short": (
        safetensors({"query": {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        "its header is wrong",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_arrays_is_refused(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(ShapeError, match=message if "|" in message else re.escape(message)):
        read_arrays(data)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # the archive that is written for the test has one on purpose
def test_an_array_that_is_there_twice_is_refused() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as written:
        for _ in range(2):
            written.writestr("query.npy", npy(GOOD, bytes(8)))
    with pytest.raises(ShapeError, match="there are two arrays 'query'; give one"):
        read_arrays(stream.getvalue())


@pytest.mark.parametrize(("flag", "method"), [(1, zipfile.ZIP_STORED), (0, zipfile.ZIP_LZMA), (0, zipfile.ZIP_BZIP2)])
def test_other_ways_to_pack_are_refused(flag: int, method: int) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as written:
        written.writestr("query.npy", npy(GOOD, bytes(8)))
    data = bytearray(stream.getvalue())
    data[6] |= flag
    data[data.index(b"PK\x01\x02") + 8] |= flag
    with pytest.raises(ShapeError, match="is packed in a way that NumPy does not write"):
        read_arrays(bytes(data))


@settings(max_examples=200)
@given(st.data())
def test_no_damage_is_worse_than_a_refusal(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([npz(**THREE), npz(True, **THREE, tokens=np.array(["a", "b", "c"])), TENSORS]))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(1, len(whole)))])
    with contextlib.suppress(ShapeError):
        read_arrays(cut)


def _tensors() -> bytes:
    entries, data = {}, b""
    for name, array in THREE.items():
        entries[name] = {"dtype": "F64", "shape": [3, 4], "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    return safetensors(entries, data)


TENSORS = _tensors()
