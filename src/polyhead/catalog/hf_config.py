"""The config.json of a transformers checkpoint, read into one `LayerSpec` per layer.

Model types llama, mistral, qwen2, qwen3 and gpt2 are read, in the spelling of transformers 4 (``rope_theta``,
``rope_scaling``) and of transformers 5 (``rope_parameters``). What cannot be said as a spec is refused by the
name of its field. A number that the file lacks comes from transformers' config class only where the published
files of that model type leave it out on purpose; else it is asked for, never guessed.

*Source*: these types' configuration and modeling files in transformers 5.23, and its modeling_rope_utils.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from polyhead.errors import CheckpointError, SpecError, UnsupportedError
from polyhead.spec import (
    AttentionSpec,
    Causal,
    DynamicNTKScaling,
    Grouped,
    LayerSpec,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Pattern,
    Rotary,
    Scaling,
    SlidingWindow,
    Softmax,
    YarnScaling,
)
from polyhead.spec.choice import as_int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """What the code of a model type settles, whatever its config.json says.

    Attributes:
        bias: Whether q, k and v have a bias, and whether the output projection has one. None: the field
            ``attention_bias`` says so of all four.
        qk_norm: Whether queries and keys are normalised per head.
        windows: Which layers may slide: ``"none"``, ``"all"`` or, by ``layer_types``, ``"some"``.
        omitted: Fields that published files leave out, with the config class's default.
        fixed: Fields that the code does not look at, with the only value that is true of it.
    """

    bias: tuple[bool, bool] | None
    qk_norm: bool = False
    windows: str = "none"
    omitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_FAMILIES: Mapping[str, _Family] = {
    # LLaMA 1 and 2 were published before these three fields existed.
    "llama": _Family(
        bias=None,
        omitted={"rope_theta": 10000.0, "num_key_value_heads": None, "attention_bias": False},
        fixed={"sliding_window": None, "is_causal": True},
    ),
    # A file without sliding_window relies on MistralConfig's 4096; from v0.2 on files say null: no window.
    "mistral": _Family(
        bias=(False, False),
        windows="all",
        omitted={"sliding_window": 4096},
        fixed={"attention_bias": False, "is_causal": True},
    ),
    "qwen2": _Family(bias=(True, False), windows="some", fixed={"attention_bias": True, "is_causal": True}),
    "qwen3": _Family(bias=None, qk_norm=True, windows="some", fixed={"is_causal": True}),
    # OpenAI's files have neither field; both came later, with defaults that keep the old arithmetic.
    "gpt2": _Family(
        bias=(True, True),
        omitted={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        fixed={"add_cross_attention": False, "is_causal": True},
    ),
}

MODEL_TYPES = tuple(_FAMILIES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    """A config.json, and what the code of its model type adds to it."""

    model_type: str
    family: _Family
    fields: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """Return a field, or what published files that lack it rely on, or None."""
        return self.fields.get(name, self.family.omitted.get(name))

    def need(self, name: str) -> Any:
        """Return a field that must be there and not null."""
        value = self.get(name)
        if value is None:
            raise CheckpointError(f"config.json has no {name}, which a {self.model_type} needs; add it")
        return value

    def need_stated(self, name: str) -> Any:
        """Return a field that must be there, where null says something."""
        if name in self.fields or name in self.family.omitted:
            return self.get(name)
        return self.need(name)

    def whole(self, name: str) -> int:
        """Return a field that must be a whole number above 0."""
        return as_int(name, self.need(name), at_least=1)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a config.json.

    Args:
        path: The file, or a directory that holds one.

    Returns:
        Its fields, as they stand in the file.

    Raises:
        CheckpointError: If there is no such file, or if it is not JSON or not an object.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file} holds a {type(fields).__name__}, where a config.json holds an object")
    return fields


def layer_specs(config: Mapping[str, Any]) -> list[LayerSpec]:
    """Return what each attention layer of a model is.

    Args:
        config: The fields of a config.json, as `read_config` returns them.

    Returns:
        One spec per layer, the first layer's first.

    Raises:
        UnsupportedError: If the model type or a field of it cannot be expressed; the message names it.
        CheckpointError: If a field that is needed is missing, or if the numbers do not fit together.
    """
    try:
        read = _checked(config)
        return _gpt2_layers(read) if read.model_type == "gpt2" else _rotary_layers(read)
    except SpecError as error:
        raise CheckpointError(f"config.json describes no attention that is defined: {error}") from error


def _checked(fields: Mapping[str, Any]) -> _Config:
    model_type = fields.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("config.json has no model_type; is it a transformers model's?")
    if model_type not in _FAMILIES:
        raise UnsupportedError(f"model_type={model_type!r} is not read; what is read: {_listed(MODEL_TYPES)}")
    config = _Config(model_type=model_type, family=_FAMILIES[model_type], fields=fields)
    for name, value in config.family.fixed.items():
        if fields.get(name) not in (None, value):
            raise _in_the_way(name, f"the file says {fields[name]!r}, and a {model_type} always runs as {value!r}")
    return config


def _in_the_way(field: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"{field} of config.json stands in the way: {why}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _gpt2_layers(config: _Config) -> list[LayerSpec]:
    embed_dim, num_heads = config.whole("n_embd"), config.whole("n_head")
    storage = Grouped(num_heads=num_heads, head_dim=_head_dim(embed_dim, num_heads))
    scaled = config.get("scale_attn_weights")
    by_layer = config.get("scale_attn_by_inverse_layer_idx")

    def scale(layer: int) -> float | None:
        if not by_layer:
            return None if scaled else 1.0
        return (1.0 / math.sqrt(storage.head_dim) if scaled else 1.0) / (layer + 1)

    return [
        _layer(
            config,
            embed_dim,
            AttentionSpec(storage=storage, pattern=pattern, weighting=Softmax(scale=scale(i))),
        )
        for i, pattern in enumerate(_patterns(config, config.whole("n_layer")))
    ]


def _rotary_layers(config: _Config) -> list[LayerSpec]:
    embed_dim, num_heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    num_kv_heads = config.need_stated("num_key_value_heads")  # null: one per query head
    # Qwen3Config derives no width but says 128, and every published file states its own
    given = config.need("head_dim") if config.model_type == "qwen3" else config.get("head_dim")
    head_dim = _head_dim(embed_dim, num_heads) if given is None else as_int("head_dim", given, at_least=1)
    storage = Grouped(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    position = _rotary(config)
    return [
        _layer(config, embed_dim, AttentionSpec(storage=storage, position=position, pattern=pattern))
        for pattern in _patterns(config, config.whole("num_hidden_layers"))
    ]


def _head_dim(embed_dim: int, num_heads: int) -> int:
    if embed_dim % num_heads:
        raise CheckpointError(f"{num_heads} heads do not divide the width of {embed_dim} that config.json gives")
    return embed_dim // num_heads


def _layer(config: _Config, embed_dim: int, attention: AttentionSpec) -> LayerSpec:
    qkv_bias, out_bias = config.family.bias or (bool(config.need("attention_bias")),) * 2
    norm = {"qk_norm": True, "norm_eps": config.need("rms_norm_eps")} if config.family.qk_norm else {}
    return LayerSpec(attention=attention, embed_dim=embed_dim, qkv_bias=qkv_bias, out_bias=out_bias, **norm)


# --- which pairs may meet -------------------------------------------------------------------------

_LAYER_TYPES = _FULL, _SLIDING = "full_attention", "sliding_attention"


def _patterns(config: _Config, num_layers: int) -> list[Pattern]:
    window = _window(config)
    kinds = _layer_types(config, num_layers, slides=window is not None)
    if window is None and _SLIDING in kinds:
        raise CheckpointError(f"layer_types has {_SLIDING!r}, and config.json gives no window")
    return [SlidingWindow.causal(window) if window and kind == _SLIDING else Causal() for kind in kinds]


def _window(config: _Config) -> int | None:
    """Return how many tokens a sliding layer sees, its own included, or None if no layer slides."""
    if config.family.windows == "none":
        return None
    if config.family.windows == "some" and not config.need("use_sliding_window"):
        return None
    window = config.need_stated("sliding_window")
    return None if window is None else as_int("sliding_window", window, at_least=1)


def _layer_types(config: _Config, num_layers: int, *, slides: bool) -> list[str]:
    given = config.get("layer_types")
    if given is not None and (not isinstance(given, list) or len(given) != num_layers):
        raise CheckpointError(f"layer_types={given!r} does not give each of the {num_layers} layers its type")
    if strange := [kind for kind in given or () if kind not in _LAYER_TYPES]:
        raise _in_the_way("layer_types", f"{strange[0]!r} is not read; what is read: {_listed(_LAYER_TYPES)}")
    if config.family.windows == "some":
        return given or _split_layers(config, num_layers, slides=slides)
    kind = _SLIDING if slides else _FULL
    if given is not None and set(given) != {kind}:
        raise _in_the_way("layer_types", f"a {config.model_type} without types runs every layer as {kind!r}")
    return [kind] * num_layers


def _split_layers(config: _Config, num_layers: int, *, slides: bool) -> list[str]:
    """Return Qwen's layer types where a file has none: the first ``max_window_layers`` do not slide."""
    first = as_int("max_window_layers", config.need("max_window_layers"), at_least=0) if slides else num_layers
    return [_FULL if layer < first else _SLIDING for layer in range(num_layers)]


# --- how far RoPE turns ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rope:
    """The rotation's own fields, without those that are null."""

    config: _Config
    name: str
    fields: Mapping[str, Any]

    def need(self, key: str) -> Any:
        if key not in self.fields:
            raise CheckpointError(f"config.json has no {self.name}.{key}, which its rope_type needs; add it")
        return self.fields[key]

    def divisors(self, key: str) -> tuple[Any, ...]:
        if not isinstance(self.need(key), list):
            raise CheckpointError(f"{self.name}.{key} of config.json is not a list of numbers")
        return tuple(self.fields[key])

    @property
    def max_seq_len(self) -> int:
        return self.config.whole("max_position_embeddings")

    @property
    def original_max_seq_len(self) -> int:
        """The trained length: beside the rotation's fields (this wins), in them, or the longest."""
        name = "original_max_position_embeddings"
        length = self.config.get(name) or self.fields.get(name) or self.max_seq_len
        return as_int(name, length, at_least=1)

    @property
    def factor(self) -> Any:
        """How many times longer the context becomes: given, or from the two lengths."""
        return self.fields.get("factor") or self.max_seq_len / self.original_max_seq_len


def _rotary(config: _Config) -> Rotary:
    # transformers prefers rope_scaling where both are there; null and an empty object count as absent
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{name}={given!r} of config.json is not an object")
    rope = _Rope(config=config, name=name, fields={k: v for k, v in given.items() if v is not None})
    _check_rope(rope)
    kind = rope.fields.get("rope_type", rope.fields.get("type", "default"))
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise _in_the_way(f"{name}.rope_type", f"{kind!r} is not read; what is read: {_listed(_SCALINGS)}")
    theta = rope.fields["rope_theta"] if "rope_theta" in rope.fields else config.need("rope_theta")
    return Rotary(theta=theta, scaling=_SCALINGS[kind](rope))


def _check_rope(rope: _Rope) -> None:
    for key, value in rope.fields.items():
        if key not in _ROPE_FIELDS or isinstance(value, Mapping):
            raise _in_the_way(f"{rope.name}.{key}", f"it is not; what is read: {_listed(_ROPE_FIELDS)}")
    # These types turn whole heads, whatever the file says, or fail when they run.
    factor = rope.fields.get("partial_rotary_factor", rope.config.get("partial_rotary_factor"))
    if factor not in (None, 1.0):
        raise _in_the_way("partial_rotary_factor", f"the file says {factor!r}; this type turns whole heads")


def _dynamic(rope: _Rope) -> Scaling:
    # the growth is measured from max_position_embeddings; an original length in the file is not looked at
    return DynamicNTKScaling(factor=rope.need("factor"), original_max_seq_len=rope.max_seq_len)


def _yarn(rope: _Rope) -> Scaling:
    return YarnScaling(
        factor=rope.factor,
        original_max_seq_len=rope.original_max_seq_len,
        beta_fast=rope.fields.get("beta_fast") or 32.0,
        beta_slow=rope.fields.get("beta_slow") or 1.0,
        attention_factor=rope.fields.get("attention_factor"),
        mscale=rope.fields.get("mscale") or None,
        mscale_all_dim=rope.fields.get("mscale_all_dim") or None,
        truncate=bool(rope.fields.get("truncate", True)),
    )


def _longrope(rope: _Rope) -> Scaling:
    return LongRopeScaling(
        short_factor=rope.divisors("short_factor"),
        long_factor=rope.divisors("long_factor"),
        original_max_seq_len=rope.original_max_seq_len,
        factor=rope.factor,
        attention_factor=rope.fields.get("attention_factor"),
    )


def _llama3(rope: _Rope) -> Scaling:
    return Llama3Scaling(
        factor=rope.need("factor"),
        low_freq_factor=rope.need("low_freq_factor"),
        high_freq_factor=rope.need("high_freq_factor"),
        original_max_seq_len=rope.original_max_seq_len,
    )


_SCALINGS: Mapping[str, Callable[[_Rope], Scaling | None]] = {
    "default": lambda rope: None,
    "linear": lambda rope: LinearScaling(factor=rope.need("factor")),
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}

_ROPE_FIELDS = (
    *(
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
    ),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
    "finetuned",  # how a YaRN model was made; it changes nothing in it
)
