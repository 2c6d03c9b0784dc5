"""A cache in a safetensors file: its tensors, and in the header what they are."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyhead.cache.base import Cache
from polyhead.cache.make import new_cache
from polyhead.errors import CheckpointError, PolyheadError, SpecError, require_extra
from polyhead.files import replacing
from polyhead.spec import AttentionSpec
from polyhead.spec.choice import as_int

VERSION = 1
"""Version of the file's header. Files of every earlier version stay readable."""

HEADER = "polyhead_cache"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of its cache.

    Attributes:
        version: Version of this header.
        spec: The mechanism, as JSON-ready data.
        source: ``"self"`` or ``"cross"``.
        dtype: Dtype of the keys and values that the cache takes, by torch's name.
        lengths: The sequences' lengths.
        options: What `Cache.options` returned.
    """

    version: int
    spec: dict[str, Any]
    source: str
    dtype: str
    lengths: tuple[int, ...]
    options: dict[str, Any]

    def __post_init__(self) -> None:
        as_int("version", self.version, at_least=1)
        lengths = tuple(as_int("lengths", length, at_least=0) for length in self.lengths)
        object.__setattr__(self, "lengths", lengths)
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise SpecError(f"dtype={self.dtype!r} is none that torch has")
        if not isinstance(self.options, dict):
            raise SpecError(f"options={self.options!r} are no object")


def save(cache: Cache, path: str | os.PathLike[str]) -> None:
    """Write a cache to a file; see `Cache.save`."""
    safetensors_torch = require_extra("safetensors.torch", "torch", "saving a cache")
    header = Header(
        version=VERSION,
        spec=json.loads(cache.spec.to_json()),
        source=cache.source,
        dtype=str(cache.dtype).removeprefix("torch."),
        lengths=cache.lengths,
        options=cache.options(),
    )
    tensors = {name: tensor.cpu().contiguous() for name, tensor in cache.saved_tensors().items()}
    with replacing(Path(path)) as beside:
        safetensors_torch.save_file(tensors, beside, {HEADER: json.dumps(dataclasses.asdict(header))})


def load(
    path: str | os.PathLike[str], spec: AttentionSpec, *, source: str = "self", device: str | torch.device = "cpu"
) -> Cache:
    """Read a cache that `Cache.save` wrote.

    Args:
        path: The file.
        spec: The mechanism that it is to serve.
        source: ``"self"`` or ``"cross"``.
        device: Where to keep its tensors.

    Returns:
        A cache with the same content.

    Raises:
        CheckpointError: If the file is missing, cut short, no cache of this version, or does not hold what its
            header says.
        SpecError: If it was saved from another spec.
    """
    header, tensors = _read(Path(path), str(torch.device(device)))
    if (header.spec, header.source) != (json.loads(spec.to_json()), source):
        raise SpecError(
            f"{path} was saved from another spec, {json.dumps(header.spec)} with source={header.source!r}; "
            f"this one is {spec.to_json()} with source={source!r}; load it into a layer of its own spec"
        )
    asked: dict[str, Any] = {name: header.options[name] for name in ("max_seq_len", "slack") if name in header.options}
    asked |= {"dtype": getattr(torch, header.dtype), "device": device, "source": source}
    try:
        cache = new_cache(spec, batch=len(header.lengths), **asked)
        cache.restore(tensors, header.lengths, header.options)
    except (PolyheadError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not hold what its header says: {error}") from error
    return cache


def _read(path: Path, device: str) -> tuple[Header, Mapping[str, Tensor]]:
    safetensors = require_extra("safetensors", "torch", "loading a cache")
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}; write one with cache.save(path)")
    try:
        with safetensors.safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is cut short, or no safetensors file ({error}); save it again") from error
    if HEADER not in metadata:
        raise CheckpointError(f"{path} holds no cache; write one with cache.save(path)")
    return _header(path, metadata[HEADER]), tensors


def _header(path: Path, text: str) -> Header:
    try:
        fields = json.loads(text)
        version = as_int("version", fields["version"], at_least=1)
        if version > VERSION:  # before fields that only a newer one has
            raise CheckpointError(
                f"{path} is a cache of version {version} and this polyhead reads up to {VERSION}; install a newer one"
            )
        return Header(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} has a header that is none of a cache: {error!r}; save it again") from error
