"""The config.json of a transformers checkpoint, read into one `LayerSpec` per layer.

Read are the model types llama, mistral, qwen2, qwen3 and gpt2, in the spelling of transformers 4 (``rope_theta``
and ``rope_scaling``) and of transformers 5 (``rope_parameters``). What cannot be said as a spec is refused by
the name of its field, and a number that the file lacks is taken from transformers' config class only where the
published files of that model type leave it out on purpose.

*Source*: the configuration and modeling files of these types in transformers 5.23, and ``modeling_rope_utils``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
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
    NoPosition,
    Pattern,
    Position,
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
        bias: Whether q, k and v have a bias, and whether the output projection has. None: ``attention_bias`` says.
        qk_norm: Whether queries and keys are normalised per head.
        windows: Which layers may slide: ``"none"``, ``"all"`` (by ``sliding_window``) or ``"some"``
            (by ``layer_types``).
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
    # OpenAI's four files say neither; the two fields came later, with defaults that keep the old arithmetic.
    "gpt2": _Family(
        bias=(True, True),
        omitted={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        fixed={"add_cross_attention": False, "is_causal": True},
    ),
}

_ROPE_KEYS = frozenset(
    "rope_type type rope_theta partial_rotary_factor factor original_max_position_embeddings attention_factor "
    "beta_fast beta_slow short_factor long_factor low_freq_factor high_freq_factor mscale mscale_all_dim truncate "
    "finetuned".split()  # the last says how a YaRN model was made and changes nothing in it
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Config:
    """A config.json and what the code of its model type adds to it."""

    model_type: str
    family: _Family
    fields: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """Return a field, from the config class where published files rely on that, or None."""
        return self.fields.get(name, self.family.omitted.get(name))

    def need(self, name: str) -> Any:
        """Return a field that must be there."""
        value = self.get(name)
        if value is None:
            raise CheckpointError(
                f"config.json has no {name}, which a {self.model_type} needs; add it, no number is guessed"
            )
        return value

    def whole(self, name: str) -> int:
        """Return a field that must be there and be a whole number above 0."""
        return as_int(name, self.need(name), at_least=1)

    def unsupported(self, field: str, why: str) -> UnsupportedError:
        return UnsupportedError(f"{field} of config.json stands in the way: {why}")


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
        raise CheckpointError(f"cannot read {file}: {error.strerror}; give a checkpoint's config.json") from error
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
        One spec per layer, first layer first.

    Raises:
        UnsupportedError: If the model type or a field of it cannot be expressed; the message names it.
        CheckpointError: If a field that is needed is missing, or if the numbers do not fit together.
    """
    read = _checked(config)
    try:
        return _gpt2(read) if read.model_type == "gpt2" else _rotary_layers(read)
    except SpecError as error:
        raise CheckpointError(f"config.json does not describe attention that is defined: {error}") from error


def _checked(fields: Mapping[str, Any]) -> _Config:
    model_type = fields.get("model_type")
    if model_type is None:
        raise CheckpointError("config.json has no model_type; is it the config.json of a transformers model?")
    family = _FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedError(f"model_type={model_type!r} is not read; what is read: {', '.join(_FAMILIES)}")
    config = _Config(model_type=model_type, family=family, fields=fields)
    for name, value in family.fixed.items():
        if fields.get(name) not in (None, value):
            why = f"the code of {model_type} in transformers runs as {name}={value!r} and the file says {fields[name]!r}"
            raise config.unsupported(name, why)
    return config


def _head_dim(config: _Config, embed_dim: int, num_heads: int) -> int:
    if config.get("head_dim") is not None:
        return config.whole("head_dim")
    # Qwen3Config does not derive the width but says 128, and every published file states it.
    if config.model_type == "qwen3":
        config.need("head_dim")
    if embed_dim % num_heads:
        raise CheckpointError(f"config.json has no head_dim, and {num_heads} heads do not divide a width of {embed_dim}")
    return embed_dim // num_heads


def _gpt2(config: _Config) -> list[LayerSpec]:
    embed_dim, num_heads = config.whole("n_embd"), config.whole("n_head")
    head_dim = _head_dim(config, embed_dim, num_heads)
    if head_dim * num_heads != embed_dim:
        raise config.unsupported("head_dim", f"GPT-2 has heads of n_embd / n_head = {embed_dim}/{num_heads} widths")

    def scale(layer: int) -> float | None:
        usual = bool(config.get("scale_attn_weights"))
        if not config.get("scale_attn_by_inverse_layer_idx"):
            return None if usual else 1.0
        return (1.0 / math.sqrt(head_dim) if usual else 1.0) / (layer + 1)

    storage = Grouped(num_heads=num_heads, head_dim=head_dim)
    patterns = _patterns(config, config.whole("n_layer"))
    return [
        _layer(config, embed_dim, storage, NoPosition(), pattern, Softmax(scale=scale(layer)))
        for layer, pattern in enumerate(patterns)
    ]


def _rotary_layers(config: _Config) -> list[LayerSpec]:
    embed_dim, num_heads = config.whole("hidden_size"), config.whole("num_attention_heads")
    num_kv_heads = _num_kv_heads(config)
    storage = Grouped(
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=_head_dim(config, embed_dim, num_heads)
    )
    position = _rotary(config)
    patterns = _patterns(config, config.whole("num_hidden_layers"))
    return [_layer(config, embed_dim, storage, position, pattern, Softmax()) for pattern in patterns]


def _num_kv_heads(config: _Config) -> int | None:
    """Return the count, or None for one per query head, which is what null means in all four config classes."""
    if "num_key_value_heads" not in config.fields and "num_key_value_heads" not in config.family.omitted:
        config.need("num_key_value_heads")
    return None if config.get("num_key_value_heads") is None else config.whole("num_key_value_heads")


def _layer(
    config: _Config, embed_dim: int, storage: Grouped, position: Position, pattern: Pattern, weighting: Softmax
) -> LayerSpec:
    qkv_bias, out_bias = config.family.bias or (bool(config.need("attention_bias")),) * 2
    norm = {"qk_norm": True, "norm_eps": config.need("rms_norm_eps")} if config.family.qk_norm else {}
    attention = AttentionSpec(storage=storage, position=position, pattern=pattern, weighting=weighting)
    return LayerSpec(attention=attention, embed_dim=embed_dim, qkv_bias=qkv_bias, out_bias=out_bias, **norm)


# --- which pairs may meet -------------------------------------------------------------------------


def _patterns(config: _Config, num_layers: int) -> list[Pattern]:
    window = _window(config)
    sliding: Pattern | None = None if window is None else SlidingWindow.causal(window)
    kinds = _layer_types(config, num_layers, slides=sliding is not None)
    if sliding is None and "sliding_attention" in kinds:
        layer = kinds.index("sliding_attention")
        raise CheckpointError(f"layer_types makes layer {layer} slide, and config.json sets no window for it")
    return [sliding if sliding is not None and kind == "sliding_attention" else Causal() for kind in kinds]


def _window(config: _Config) -> int | None:
    """Return how many tokens a sliding layer sees, its own included, or None if no layer slides."""
    if config.family.windows == "none":
        return None
    if config.family.windows == "some":
        if not config.need("use_sliding_window"):
            return None
        if "sliding_window" not in config.fields:
            config.need("sliding_window")
    return None if config.get("sliding_window") is None else config.whole("sliding_window")


def _layer_types(config: _Config, num_layers: int, *, slides: bool) -> list[str]:
    given = config.get("layer_types")
    if given is not None:
        _check_layer_types(config, given, num_layers)
        if config.family.windows == "some":
            return list(given)
    if config.family.windows == "some" and slides:
        first = as_int("max_window_layers", config.need("max_window_layers"), at_least=0)
        return ["full_attention" if layer < first else "sliding_attention" for layer in range(num_layers)]
    kind = "sliding_attention" if slides else "full_attention"
    if given is not None and set(given) != {kind}:
        why = f"the code of {config.model_type} in transformers runs every layer as {kind!r}"
        raise config.unsupported("layer_types", why)
    return [kind] * num_layers


def _check_layer_types(config: _Config, given: Any, num_layers: int) -> None:
    if not isinstance(given, list) or len(given) != num_layers:
        raise CheckpointError(f"layer_types={given!r} does not name one kind for each of the {num_layers} layers")
    known = ("full_attention", "sliding_attention")
    if strange := [kind for kind in given if kind not in known]:
        raise config.unsupported("layer_types", f"{strange[0]!r} is not read; what is read: {', '.join(known)}")


# --- how far RoPE turns ---------------------------------------------------------------------------


def _rotary(config: _Config) -> Rotary:
    # In this order of preference, as transformers reads them; a null or an empty object counts as absent.
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{name}={given!r} of config.json is not an object")
    rope = {key: value for key, value in given.items() if value is not None}
    for key, value in rope.items():
        if key not in _ROPE_KEYS:
            raise config.unsupported(f"{name}.{key}", f"nothing is known of it; what is read: {', '.join(sorted(_ROPE_KEYS))}")
        if isinstance(value, Mapping):
            raise config.unsupported(f"{name}.{key}", "one rotation for each type of layer is not read")
    _refuse_partial(config, name, rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    build = _SCALINGS.get(kind) if isinstance(kind, str) else None
    if build is None:
        why = f"{kind!r} is not read; what is read: {', '.join(_SCALINGS)}"
        raise config.unsupported(f"{name}.rope_type", why)
    theta = rope["rope_theta"] if "rope_theta" in rope else config.need("rope_theta")
    return Rotary(theta=theta, scaling=build(_Rope(config=config, name=name, given=rope)))


def _refuse_partial(config: _Config, name: str, rope: Mapping[str, Any]) -> None:
    """Refuse a partial rotation: these types turn whole heads, whatever the file says, or fail when they run."""
    factor = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if factor not in (None, 1.0):
        why = f"the code of {config.model_type} in transformers turns whole heads and the file says {factor!r} of each"
        raise config.unsupported("partial_rotary_factor", why)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rope:
    """The rotation's own fields, without those that are null."""

    config: _Config
    name: str
    given: Mapping[str, Any]

    def need(self, key: str) -> Any:
        if key not in self.given:
            raise CheckpointError(f"config.json has no {self.name}.{key}, which its rope_type needs")
        return self.given[key]

    @property
    def max_seq_len(self) -> int:
        return self.config.whole("max_position_embeddings")

    @property
    def original_max_seq_len(self) -> int:
        """The trained length: beside the rotation's fields (Phi-3's way, which wins), among them, or the longest."""
        beside = self.config.get("original_max_position_embeddings")
        among = self.given.get("original_max_position_embeddings")
        length = beside if beside is not None else among
        if length is None:
            return self.max_seq_len
        return as_int("original_max_position_embeddings", length, at_least=1)

    @property
    def factor(self) -> Any:
        """How many times longer the context becomes: given, or from the two lengths."""
        return self.given["factor"] if "factor" in self.given else self.max_seq_len / self.original_max_seq_len

    def divisors(self, key: str) -> tuple[Any, ...]:
        if not isinstance(self.need(key), list):
            raise CheckpointError(f"{self.name}.{key} of config.json is not a list of numbers")
        return tuple(self.given[key])


def _linear(rope: _Rope) -> Scaling:
    return LinearScaling(factor=rope.need("factor"))


def _dynamic(rope: _Rope) -> Scaling:
    # transformers measures the growth from max_position_embeddings and ignores any original length here
    return DynamicNTKScaling(factor=rope.need("factor"), original_max_seq_len=rope.max_seq_len)


def _yarn(rope: _Rope) -> Scaling:
    given = rope.given
    return YarnScaling(
        factor=rope.factor,
        original_max_seq_len=rope.original_max_seq_len,
        beta_fast=given.get("beta_fast") or 32.0,
        beta_slow=given.get("beta_slow") or 1.0,
        attention_factor=given.get("attention_factor"),
        mscale=given.get("mscale") or None,
        mscale_all_dim=given.get("mscale_all_dim") or None,
        truncate=bool(given.get("truncate", True)),
    )


def _longrope(rope: _Rope) -> Scaling:
    return LongRopeScaling(
        short_factor=rope.divisors("short_factor"),
        long_factor=rope.divisors("long_factor"),
        original_max_seq_len=rope.original_max_seq_len,
        factor=rope.factor,
        attention_factor=rope.given.get("attention_factor"),
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
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
