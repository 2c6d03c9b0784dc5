"""A GGUF file converted once, into a directory in transformers' format."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyhead.errors import CheckpointError, PolyheadError, UnsupportedError, require_extra
from polyhead.hf.checks import cache_directory, check_finite, check_report, problem, quiet, reading

_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")  # those of which transformers loses nothing


def converted(file: Path) -> Path:
    """Return the directory that a GGUF file was converted into, now or before.

    Args:
        file: The file.

    Returns:
        A directory of the user's cache, named by the file's contents.

    Raises:
        CheckpointError: If the file is broken or cannot be converted.
        UnsupportedError: If it holds what transformers would misread.
        MissingExtraError: If it is to be converted and torch, transformers or gguf is not installed.
    """
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    target = cache_directory() / f"gguf-{digest[:16]}"
    if problem(target) is None:
        return target
    _check_gguf(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_here(target):
            if problem(target) is not None:  # else another process made it while this one waited
                _convert(file, target)
    except PolyheadError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"cannot convert {file} into {target}: {error}; set POLYHEAD_CACHE to a directory with room"
        ) from error
    return target


@contextlib.contextmanager
def _only_here(target: Path) -> Iterator[None]:
    """Hold the lock of a conversion, which the system frees even when a process is killed."""
    filelock = require_extra("filelock", "hf", "converting a GGUF file")
    lock = filelock.FileLock(target.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _say(f"polyhead: another process is converting into {target}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _convert(file: Path, target: Path) -> None:
    """Convert beside the target and rename, so that what has the target's name is whole."""
    partial = target.with_suffix(".partial")
    for leftover in (partial, target):  # the lock is held, so nobody is working on either
        shutil.rmtree(leftover, ignore_errors=True)
    _say(f"polyhead: converting {file.name} once, into {target} ...")
    started = time.monotonic()
    try:
        partial.mkdir()
        _write_checkpoint(file, partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _say(f"polyhead: converted in {time.monotonic() - started:.0f} s")


def _write_checkpoint(file: Path, into: Path) -> None:
    transformers = require_extra("transformers", "hf", "converting a GGUF file")
    torch = require_extra("torch", "hf", "converting a GGUF file")
    for module in ("gguf", "accelerate", "safetensors.torch"):
        require_extra(module, "hf", "converting a GGUF file")
    safetensors = require_extra("safetensors", "hf", "converting a GGUF file")
    # the bar over the tensors is not transformers' own and listens to nobody, so it writes into the void
    with quiet(), reading(file, "contents"), contextlib.redirect_stderr(io.StringIO()):
        network, report = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    check_report(file, report)
    check_finite(file, network)
    with quiet():
        tokenizer.save_pretrained(into)
    # save_pretrained refuses a model that came from GGUF, for what its config says of quantisation
    vars(network.config).pop("quantization_config", None)
    network.config.architectures = [type(network).__name__]
    network.config.to_json_file(into / "config.json")
    tensors = _unshared(network.state_dict())
    try:
        safetensors.torch.save_file(tensors, into / "model.safetensors", metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # a full disk is no OSError to it
        raise OSError(str(error)) from error


def _unshared(tensors: dict[str, Any]) -> dict[str, Any]:
    """Leave out the second name of tied weights, which config.json ties again."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(tensor.data_ptr(), name)
    return {name: tensors[name].contiguous() for name in first.values()}


_HEADER_BYTES = 64 << 20  # the names of a GGUF file stand at its beginning, after a vocabulary of some megabytes


def _check_gguf(file: Path) -> None:
    """Refuse what transformers cannot read or would misread.

    It takes RoPE's base from a GGUF file and drops every scaling, which may be stated (``rope.scaling.type``)
    or be a tensor of its own (LLaMA 3's, LongRoPE's); the model would then run, wrongly. Searching the header's
    bytes takes milliseconds where parsing it takes seconds.
    """
    with file.open("rb") as stream:
        header = stream.read(_HEADER_BYTES)
    if not header.startswith(b"GGUF"):
        raise CheckpointError(f"{file} is no GGUF file: it does not begin with the letters GGUF")
    for name in (b"rope_freqs.weight", b"rope_factors_long.weight", b".rope.scaling.type"):
        if name in header:
            raise UnsupportedError(
                f"{file.name} scales RoPE by {name.decode().strip('.')}, which transformers does not read from "
                "GGUF; use the model's original checkpoint"
            )
    key = re.search(rb"general\.architecture\x08\0\0\0(.)\0{7}", header, re.DOTALL)  # a string and its length
    if key:
        architecture = header[key.end() : key.end() + key[1][0]].decode(errors="replace")
        if architecture not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise UnsupportedError(f"{file.name} holds a {architecture}, which is not read; what is read: {known}")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
