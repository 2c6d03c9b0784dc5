"""A cache in a safetensors file: its tensors, and in the header what they are."""

from __future__ import annotations

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

VERSION = 1
"""Version of the file's header. Files of every earlier version stay readable."""

HEADER = "polyhead_cache"


def save(cache: Cache, path: str | os.PathLike[str]) -> None:
    """Write a cache to a file; see `Cache.save`."""
    safetensors_torch = require_extra("safetensors.torch", "torch", "saving a cache")
    header = {
        "version": VERSION,
        "spec": json.loads(cache.spec.to_json()),
        "source": cache.source,
        "dtype": str(cache.dtype).removeprefix("torch."),
        "lengths": cache.lengths,
        "options": cache.options(),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in cache.saved_tensors().items()}
    with replacing(Path(path)) as beside:
        safetensors_torch.save_file(tensors, beside, {HEADER: json.dumps(header)})


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
    if (header["spec"], header["source"]) != (json.loads(spec.to_json()), source):
        raise SpecError(
            f"{path} was saved from another spec, {json.dumps(header['spec'])} with source={header['source']!r}; "
            f"this one is {spec.to_json()} with source={source!r}; load it into a layer of its own spec"
        )
    lengths, options = tuple(header["lengths"]), header["options"]
    asked = {name: options[name] for name in ("max_seq_len", "slack") if name in options}
    dtype = getattr(torch, header["dtype"])
    cache = new_cache(spec, batch=len(lengths), source=source, dtype=dtype, device=device, **asked)
    try:
        cache.restore(tensors, lengths, options)
    except PolyheadError as error:
        raise CheckpointError(f"{path} does not hold what its header says: {error}") from error
    return cache


def _read(path: Path, device: str) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
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
    header = json.loads(metadata[HEADER])
    if header["version"] > VERSION:
        raise CheckpointError(
            f"{path} is a cache of version {header['version']} and this polyhead reads up to {VERSION}; "
            "install a newer polyhead"
        )
    return header, tensors
