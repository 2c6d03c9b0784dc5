"""From a config.json to a `Model`, and to its layers alone.

Read are the types of `MODEL_TYPES`, in the spelling of transformers 4 (``rope_theta``, ``rope_scaling``) and of
transformers 5 (``rope_parameters``). What cannot be said as a spec is refused by the name of its field. A number that
the file lacks comes from transformers' config class only where the published files of that model type leave it out on
purpose; else it is asked for, never guessed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyhead.catalog.configs import bloom_falcon, deepseek, encoder, gpt2, llama
from polyhead.catalog.configs.fields import Config, Family, Stacks, in_the_way, listed
from polyhead.catalog.model import Model
from polyhead.errors import CheckpointError, SpecError, UnsupportedError
from polyhead.spec import LayerSpec
from polyhead.spec.choice import as_int

_FAMILIES: Mapping[str, Family] = {
    family.model_type: family for module in (llama, gpt2, deepseek, bloom_falcon, encoder) for family in module.FAMILIES
}

MODEL_TYPES = tuple(_FAMILIES)
"""The model types that are read, as transformers calls them."""


def hf_config(path: str | os.PathLike[str]) -> Model:
    """Read a config.json of transformers: which attention a model has, layer by layer, and how large it is.

    ::

        ph.hf_config("my-model/config.json").layers[0].attention

    Args:
        path: The file, or a directory that holds one.

    Returns:
        The model.

    Raises:
        CheckpointError: If there is no such file, if it is no object in JSON, if a field that is needed is missing,
            or if the numbers do not fit together.
        UnsupportedError: If the model type or a field of it cannot be expressed; the message names it.
    """
    fields, file = read_config(path), _file(path)
    name = file.resolve().parent.name
    return describe(fields, name=name, title=f"{name}, a {fields.get('model_type')}", source=str(file))


def describe(
    fields: Mapping[str, Any], *, name: str, title: str, source: str, sources: Mapping[str, str] | None = None
) -> Model:
    """Return the model that a config.json describes.

    Args:
        fields: The fields of a config.json, as `read_config` returns them.
        name: The model's name to type.
        title: Its name to read.
        source: Where the fields come from.
        sources: Where single figures come from, if that is elsewhere, by the names of `Model`'s attributes.

    Returns:
        The model.

    Raises:
        CheckpointError: If a field that is needed is missing, or if the numbers do not fit together.
        UnsupportedError: If the model type or a field of it cannot be expressed; the message names it.
    """
    config = _config(fields)
    stacks = _stacks(config)
    try:
        counted = config.family.count(config, stacks)
        length = config.get(config.family.length)
        sizes = {"embed_dim": config.embed_dim, "vocab_size": config.whole("vocab_size")}
        is_tied = config.is_tied
        max_seq_len = None if length is None else as_int(config.family.length, length, at_least=1)
    except SpecError as error:
        raise CheckpointError(f"config.json gives a size that is none: {error}") from error
    figures = ("layers", "embed_dim", "vocab_size", *(() if length is None else ("max_seq_len",)))
    computed = f"counted from the same fields, as {config.family.architecture} of transformers holds them"
    return Model(
        name=name,
        title=title,
        model_type=config.model_type,
        num_layers=len(stacks.layers),
        max_seq_len=max_seq_len,
        layers=stacks.layers,
        encoder_layers=stacks.encoder_layers,
        cross_layers=stacks.cross_layers,
        parameters=counted.total,
        active_parameters=counted.total - counted.idle,
        tied_embeddings=is_tied,
        config=dict(fields),
        sources={**dict.fromkeys(figures, source), "parameters": computed, **(sources or {})},
        **sizes,
    )


def layer_specs(config: Mapping[str, Any]) -> list[LayerSpec]:
    """Return what each attention layer of a model is, and look at nothing else of its config.json.

    Args:
        config: The fields of a config.json, as `read_config` returns them.

    Returns:
        One spec per layer, the first layer's first; of an encoder and a decoder the decoder's.

    Raises:
        UnsupportedError: If the model type or a field of it cannot be expressed; the message names it.
        CheckpointError: If a field that is needed is missing, or if the numbers do not fit together.
    """
    return list(_stacks(_config(config)).layers)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a config.json.

    Args:
        path: The file, or a directory that holds one.

    Returns:
        Its fields, as they stand in the file.

    Raises:
        CheckpointError: If there is no such file, or if it is not JSON or not an object.
    """
    file = _file(path)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file} holds a {type(fields).__name__}, where a config.json holds an object")
    return fields


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path) / "config.json" if Path(path).is_dir() else Path(path)


def _config(fields: Mapping[str, Any]) -> Config:
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json has no model_type; is it a transformers model's?")
    if model_type not in _FAMILIES:
        raise UnsupportedError(f"model_type={model_type!r} is not read; what is read: {listed(MODEL_TYPES)}")
    config = Config(family=_FAMILIES[model_type], fields=fields)
    for name, value in config.family.fixed.items():
        if fields.get(name) not in (None, value):
            raise in_the_way(name, f"the file says {fields[name]!r}, and a {model_type} always runs as {value!r}")
    if fields.get("per_layer_config"):
        raise in_the_way("per_layer_config", "it gives single layers sizes of their own, which are not read")
    return config


def _stacks(config: Config) -> Stacks:
    try:
        return config.family.read(config)
    except SpecError as error:
        raise CheckpointError(f"config.json describes no attention that is defined: {error}") from error
