"""How far RoPE turns: its base and its scaling, in the spelling of transformers 4 and of transformers 5.

*Source*: transformers 5.23, modeling_rope_utils.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from polyhead.catalog.configs.fields import Config, in_the_way, listed
from polyhead.errors import CheckpointError
from polyhead.spec import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rotary,
    Scaling,
    YarnScaling,
)
from polyhead.spec.choice import as_int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """The rotation's own fields, without those that are null.

    Attributes:
        config: The config.
        name: The field that holds them: ``"rope_scaling"`` or ``"rope_parameters"``.
        fields: What it holds.
    """

    config: Config
    name: str
    fields: Mapping[str, Any]

    def need(self, key: str) -> Any:
        """Return a field that must be there."""
        if key not in self.fields:
            raise CheckpointError(f"config.json has no {self.name}.{key}, which its rope_type needs; add it")
        return self.fields[key]

    def divisors(self, key: str) -> tuple[Any, ...]:
        """Return a field that must be a list of numbers."""
        if not isinstance(self.need(key), list):
            raise CheckpointError(f"{self.name}.{key} of config.json is not a list of numbers")
        return tuple(self.fields[key])

    @property
    def kind(self) -> Any:
        """The type of scaling."""
        return self.fields.get("rope_type", self.fields.get("type", "default"))

    @property
    def max_seq_len(self) -> int:
        """The longest length."""
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


def rope_fields(config: Config) -> Rope:
    """Return what a config says of the rotation.

    Args:
        config: The config.

    Returns:
        Its fields.

    Raises:
        CheckpointError: If they are no object.
        UnsupportedError: If one of them is not read.
    """
    # transformers prefers rope_scaling where both are there; null and an empty object count as absent
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{name}={given!r} of config.json is not an object")
    rope = Rope(config=config, name=name, fields={k: v for k, v in given.items() if v is not None})
    for key, value in rope.fields.items():
        if key not in _FIELDS or isinstance(value, Mapping):
            raise in_the_way(f"{rope.name}.{key}", f"it is not; what is read: {listed(_FIELDS)}")
    # These types turn whole heads, whatever the file says, or fail when they run.
    part = rope.fields.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if part not in (None, 1.0):
        raise in_the_way("partial_rotary_factor", f"the file says {part!r}; this type turns whole heads")
    if not isinstance(rope.kind, str) or rope.kind not in _SCALINGS:
        raise in_the_way(f"{name}.rope_type", f"{rope.kind!r} is not read; what is read: {listed(_SCALINGS)}")
    return rope


def rotary(config: Config, *, pairs: str = "half") -> Rotary:
    """Return a config's rotation.

    Args:
        config: The config.
        pairs: Which widths make a plane, a matter of the model type.

    Returns:
        The rotation; it turns the whole head.

    Raises:
        CheckpointError: If a field that is needed is missing.
        UnsupportedError: If a field is not read.
    """
    rope = rope_fields(config)
    theta = rope.fields["rope_theta"] if "rope_theta" in rope.fields else config.need("rope_theta")
    return Rotary(theta=theta, pairs=pairs, scaling=_SCALINGS[rope.kind](rope))


def _dynamic(rope: Rope) -> Scaling:
    # the growth is measured from max_position_embeddings; an original length in the file is not looked at
    return DynamicNTKScaling(factor=rope.need("factor"), original_max_seq_len=rope.max_seq_len)


def _yarn(rope: Rope) -> Scaling:
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


def _longrope(rope: Rope) -> Scaling:
    return LongRopeScaling(
        short_factor=rope.divisors("short_factor"),
        long_factor=rope.divisors("long_factor"),
        original_max_seq_len=rope.original_max_seq_len,
        factor=rope.factor,
        attention_factor=rope.fields.get("attention_factor"),
    )


def _llama3(rope: Rope) -> Scaling:
    return Llama3Scaling(
        factor=rope.need("factor"),
        low_freq_factor=rope.need("low_freq_factor"),
        high_freq_factor=rope.need("high_freq_factor"),
        original_max_seq_len=rope.original_max_seq_len,
    )


_SCALINGS: Mapping[str, Callable[[Rope], Scaling | None]] = {
    "default": lambda rope: None,
    "linear": lambda rope: LinearScaling(factor=rope.need("factor")),
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}

_FIELDS = (
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor"),
    "finetuned",  # how a YaRN model was made; it changes nothing in it
)
