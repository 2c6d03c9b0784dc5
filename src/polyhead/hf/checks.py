"""What a checkpoint's files must be before and after transformers reads them: whole, the model's, and finite."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from polyhead.errors import CheckpointError, MissingExtraError, PolyheadError, require_extra

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"),
    *("spiece.model", "sentencepiece.bpe.model", "source.spm"),
)
_OLD_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias)|position_ids)$")
"""What older versions of transformers saved and newer ones compute: angles, causal masks, the numbers from 0."""
_OTHER_HEADS = re.compile(r"(^|\.)(pooler|cls|classifier|score|qa_outputs)\.")
"""Heads for other tasks than the model's, which a checkpoint may hold besides (BERT's, from its training)."""


def problem(directory: Path) -> str | None:
    """Return what a directory lacks of a checkpoint, or None."""
    if not (directory / "config.json").is_file():
        return "holds no config.json"
    if not any((directory / name).is_file() for name in (WEIGHTS, INDEX)):
        return f"holds no weights, which are {WEIGHTS} or {INDEX} with its parts"
    if not any((directory / name).is_file() for name in _TOKENIZERS):
        return f"holds no tokenizer, which is one of {', '.join(_TOKENIZERS)}"
    return None


def tensor_files(directory: Path) -> dict[str, Path]:
    """Return the file that each tensor of a checkpoint stands in, from the files' headers.

    Args:
        directory: The checkpoint.

    Returns:
        Files by the names of their tensors.

    Raises:
        CheckpointError: If the index or a file that it names is missing or broken.
    """
    single = directory / WEIGHTS
    if single.is_file():
        return dict.fromkeys(_tensor_names(single), single)
    index = directory / INDEX
    expected = _read_index(index)
    found: dict[str, Path] = {}
    for name in sorted(set(expected.values())):
        file = directory / name
        if not file.is_file():
            raise CheckpointError(f"{index} names {name}, which is not there; fetch that file")
        found |= dict.fromkeys(_tensor_names(file), file)
    for tensor, name in expected.items():
        if found.get(tensor) != directory / name:
            raise CheckpointError(f"{directory / name} lacks {tensor}, which {INDEX} says it holds; fetch both again")
    return found


def _read_index(index: Path) -> dict[str, str]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(name) for tensor, name in names.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{index} lists no tensors by file ({reason}); {_remedy(index)}") from error


def _tensor_names(file: Path) -> list[str]:
    safetensors = require_extra("safetensors", "hf", "loading a model")
    with reading(file, "tensors"), safetensors.safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def check_report(source: Path, report: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> None:
    """Refuse weights that are not the model's: transformers fills the gaps with noise and only warns.

    Args:
        source: The checkpoint.
        report: What transformers says it found, from ``output_loading_info``.
        files: The file of each tensor, where there are several.

    Raises:
        CheckpointError: If a tensor is missing, has another shape, or is none of the model's, though no old buffer and
            no head for another task.
    """
    where = files or {}
    if missing := set(report["missing_keys"]):
        raise CheckpointError(f"{source} lacks {_some(missing)}, which its config.json asks for")
    if shapes := {name: (list(found), list(asked)) for name, found, asked in report["mismatched_keys"]}:
        first = min(shapes)
        found, asked = shapes[first]
        raise CheckpointError(
            f"{where.get(first, source)} has {_some(shapes)} as {found}, and its config.json asks for {asked}"
        )
    known = (_OLD_BUFFERS, _OTHER_HEADS)
    if stray := {name for name in report["unexpected_keys"] if not any(some.search(name) for some in known)}:
        raise CheckpointError(
            f"{where.get(min(stray), source)} has {_some(stray)}, which the model in its config.json does not have"
        )


@contextlib.contextmanager
def conversion(source: Path) -> Iterator[None]:
    """Name what transformers cannot make of a checkpoint's tensors (experts stacked, say), which only its log tells.

    Args:
        source: The checkpoint.

    Raises:
        CheckpointError: If there is such a tensor.
    """
    logger, said = logging.getLogger("transformers.modeling_utils"), list[str]()
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    except RuntimeError as error:
        names = re.findall(r"^(\S+)\s*\|.*CONVERSION", "\n".join(said), re.MULTILINE)
        if not names:
            raise
        raise CheckpointError(
            f"{source} does not hold what {_some(names)} is made of: a tensor is missing, or its shape is not what "
            "config.json asks for"
        ) from error
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def check_finite(source: Path, network: Any, files: Mapping[str, Path] | None = None) -> None:
    """Refuse weights that are no numbers, as a broken file or too narrow a dtype makes them.

    Args:
        source: The checkpoint.
        network: The model.
        files: The file of each tensor, where there are several.

    Raises:
        CheckpointError: If a parameter has a value that is NaN or infinite.
    """
    torch = require_extra("torch", "hf", "loading a model")
    for name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            continue
        values = parameter.float() if parameter.element_size() == 1 else parameter  # torch knows none of 8 bits
        if not torch.isfinite(values).all():
            kind = str(parameter.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{(files or {}).get(name, source)} gives {name} values that are not finite in {kind}; "
                f"{_remedy(source)}, or ask for a wider dtype"
            )


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
def reading(source: Path, what: str) -> Iterator[None]:
    """Name the file in what a parser raises on a broken one, which can be any exception.

    Args:
        source: The file, or the directory.
        what: What of it is read.

    Raises:
        CheckpointError: If it cannot be read.
        MissingExtraError: If a package is missing that reads it.
    """
    try:
        yield
    except (PolyheadError, MemoryError):
        raise
    except ImportError as error:
        raise MissingExtraError(f"reading the {what} of {source} needs a package: {_one_line(error)}") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {_one_line(error)}".strip(": ")
        raise CheckpointError(f"the {what} of {source} cannot be read ({reason}); {_remedy(source)}") from error


def _remedy(source: Path) -> str:
    for directory in (source, *source.parents):
        if directory.parent == cache_directory():
            return f"delete {directory}, and the next call converts the file again"
    return "fetch the file again"


def cache_directory() -> Path:
    """Return where converted checkpoints are kept: ``$POLYHEAD_CACHE``, or polyhead in the user's cache."""
    if given := os.environ.get("POLYHEAD_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polyhead"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
