"""Arrays out of the bytes of an .npz or .safetensors file that somebody sent: every size is checked before it is read.

Both formats are read here and not by their libraries, since those allocate what a header declares, and one of them runs
code where it is asked to. Nothing here does: an array of objects has no format that is read.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ShapeError

Array = NDArray[Any]

NUMBERS = ("query", "key", "value", "cross_query")
NAMES = (*NUMBERS, "tokens")
MAX_BYTES = 32 * 2**20
"""Bytes that all arrays of a file may have together, unpacked."""

MAX_HEADER = 64 * 2**10
MAX_NAME = 256
"""Characters of a token's name."""

_NPY = re.compile(
    r"\{'descr': '(?P<dtype>[<>|=][fiubU]\d{1,4})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>(?:\d{1,12},? ?)*)\),? \}\s*"
)
"""What NumPy writes before an array."""

_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_ZIP = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


def read_arrays(data: bytes) -> dict[str, Any]:
    """Read a file of arrays.

    Args:
        data: The bytes of an .npz file as ``numpy.savez`` or ``numpy.savez_compressed`` writes it, or of a .safetensors
            file; tokens stand in the latter as a JSON list in its metadata.

    Returns:
        ``query``, ``key``, ``value``, and if they are there ``cross_query`` and ``tokens``.

    Raises:
        ShapeError: If it is neither, or has other arrays, or more than ``MAX_BYTES`` of them.
    """
    kind, read = (".npz", _read_npz) if data[:4] == b"PK\x03\x04" else (".safetensors", _read_safetensors)
    try:
        arrays = read(data)
    except ShapeError:
        raise
    except _BROKEN as error:
        raise ShapeError(
            f"this cannot be read as {kind}: {_reason(error)}; write it with numpy.savez or safetensors"
        ) from None
    if missing := [name for name in NUMBERS[:3] if name not in arrays]:
        raise ShapeError(f"it lacks the array {missing[0]!r}; it needs query, key and value")
    return arrays


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}…"


# --- .npz -----------------------------------------------------------------------------------------


def _read_npz(data: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        _check_names([member.filename.removesuffix(".npy") for member in members])
        _check_bytes({member.filename: member.file_size for member in members})
        arrays: dict[str, Any] = {}
        for member in members:
            if member.compress_type not in _ZIP or member.flag_bits & 1:
                raise ShapeError(f"{member.filename} is packed in a way that NumPy does not write; use numpy.savez")
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                array = _read_npy(name, stream.read, member.file_size)
            arrays[name] = _tokens(array.tolist()) if name == "tokens" else array
    return arrays


def _read_npy(name: str, read: Callable[[int], bytes], size: int) -> Array:
    """Read one array, whose header must be what NumPy writes and whose numbers fill the rest of the file."""
    lead = read(8)
    if lead[:6] != b"\x93NUMPY" or lead[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ShapeError(f"{name} is no array as NumPy writes it")
    width = 2 if lead[6] == 1 else 4
    length = int.from_bytes(read(width), "little")
    if length > MAX_HEADER:
        raise ShapeError(f"{name} has a header of {length} bytes; one has at most {MAX_HEADER}")
    found = _NPY.fullmatch(read(length).decode("latin-1"))
    if found is None:
        raise ShapeError(f"{name} is no array of plain numbers, or of texts; objects are not read")
    shape = tuple(int(part) for part in re.findall(r"\d+", found["shape"]))
    dtype = _dtype(name, found["dtype"])
    _check_size(name, shape, dtype, size - 8 - width - length)
    rows = np.frombuffer(read(math.prod(shape) * dtype.itemsize), dtype)
    return rows.reshape(shape, order="F" if found["fortran"] == "True" else "C")


def _dtype(name: str, text: str) -> np.dtype[Any]:
    wanted = "U" if name == "tokens" else "fiub"
    if text[1] not in wanted:
        what = "an array of texts" if name == "tokens" else "an array of real numbers"
        raise ShapeError(f"{name} has dtype {text}; give {what}")
    try:
        return np.dtype(text)
    except TypeError:
        raise ShapeError(f"{name} has dtype {text}, which there is none of") from None


# --- .safetensors ---------------------------------------------------------------------------------


def _read_safetensors(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise ShapeError("this is neither an .npz nor a .safetensors file; write one with numpy.savez")
    header = _header(data[8 : 8 + length])
    told = header.pop("__metadata__", {})
    _check_names(list(header))
    body = memoryview(data)[8 + length :]
    arrays: dict[str, Any] = {name: _tensor(name, entry, body) for name, entry in header.items()}
    if isinstance(told, dict) and "tokens" in told:
        arrays["tokens"] = _tokens(_decoded(str(told["tokens"])))
    return arrays


def _header(text: bytes) -> dict[str, Any]:
    header = _decoded(text)
    if not isinstance(header, dict):
        raise ShapeError("the header of this .safetensors file names no arrays")
    return header


def _decoded(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ShapeError("the header of this .safetensors file is nested too deep") from None


def _tensor(name: str, entry: Any, body: memoryview) -> Array:
    shape, offsets, dtype = _told(name, entry)
    start, stop = offsets
    if not 0 <= start <= stop <= len(body):
        raise ShapeError(f"{name} lies at bytes {start} to {stop} of {len(body)}")
    _check_size(name, shape, dtype, stop - start)
    rows = np.frombuffer(body[start:stop], dtype)
    if entry["dtype"] == "BF16":
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.reshape(shape)


def _told(name: str, entry: Any) -> tuple[tuple[int, ...], tuple[int, int], np.dtype[Any]]:
    """Return a tensor's shape, offsets and dtype as its header has them."""
    told: dict[str, Any] = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = _sizes(told.get("shape")), _sizes(told.get("data_offsets")), told.get("dtype")
    if shape is None or offsets is None or len(offsets) != 2:
        raise ShapeError(f"{name} has no shape and offsets as .safetensors has them")
    if not isinstance(dtype, str) or dtype not in _SAFETENSORS:
        raise ShapeError(f"{name} has dtype {str(dtype)[:20]!r}; give one of {', '.join(_SAFETENSORS)}")
    return shape, (offsets[0], offsets[1]), np.dtype(_SAFETENSORS[dtype])


def _sizes(found: Any) -> tuple[int, ...] | None:
    are_sizes = isinstance(found, list) and all(type(number) is int and number >= 0 for number in found)
    return tuple(found) if are_sizes else None


# --- both -----------------------------------------------------------------------------------------


def _check_names(names: list[str]) -> None:
    for index, name in enumerate(names):
        if name not in NAMES:
            raise ShapeError(f"there is an array {name[:64]!r}; there may be {', '.join(NAMES)}")
        if name in names[:index]:
            raise ShapeError(f"there are two arrays {name!r}; give one")


def _check_bytes(sizes: Mapping[str, int]) -> None:
    if (total := sum(sizes.values())) > MAX_BYTES:
        raise ShapeError(f"its arrays have {total:,} bytes, and a dashboard takes {MAX_BYTES:,}; give fewer tokens")


def _check_size(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
    if len(shape) > 3 or math.prod(shape) * dtype.itemsize != size:
        raise ShapeError(f"{name} has shape {list(shape[:4])} of {dtype}, and {size} bytes: its header is wrong")


def _tokens(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ShapeError("tokens are no list of texts; give a name for each position")
    if longest := next((name for name in names if len(name) > MAX_NAME), None):
        raise ShapeError(f"the token {longest[:32]!r}… has {len(longest)} characters; give at most {MAX_NAME}")
    if broken := next((name for name in names if any("\ud800" <= character <= "\udfff" for character in name)), None):
        raise ShapeError(f"the token {broken[:32]!r} is no Unicode text: it holds half a character")
    return names
