"""A config.json under the names that its model type's code reads, and what is said of fields that are not there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from polyhead.catalog.configs.counting import Parameters
from polyhead.errors import CheckpointError, UnsupportedError
from polyhead.spec import LayerSpec
from polyhead.spec.choice import as_flag, as_int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stacks:
    """A model's attention layers, as in `polyhead.catalog.model.Model`."""

    layers: tuple[LayerSpec, ...]
    encoder_layers: tuple[LayerSpec, ...] = ()
    cross_layers: tuple[LayerSpec, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A model type: how its config.json is read, and what its code settles whatever the file says.

    Attributes:
        model_type: Its name in transformers.
        architecture: The class in transformers whose parameters are counted.
        read: Reads the attention layers.
        count: Counts the parameters.
        width: The field that says how wide a token is.
        length: The field that says how long a sequence may be.
        tied: Whether embeddings and output share one tensor where the file does not say.
        aliases: For a field, the other names that files give it.
        omitted: Fields that published files leave out, with the config class's default.
        fixed: Fields that the code does not look at, with the only value that is true of it.
    """

    model_type: str
    architecture: str
    read: Callable[[Config], Stacks]
    count: Callable[[Config, Stacks], Parameters]
    width: str = "hidden_size"
    length: str = "max_position_embeddings"
    tied: bool = False
    aliases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    omitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A config.json, and what the code of its model type adds to it."""

    family: Family
    fields: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """The model type."""
        return self.family.model_type

    def stated(self, name: str) -> bool:
        """Whether the file has a field, or published files rely on the config class for it."""
        return name in self.family.omitted or any(key in self.fields for key in self._names(name))

    def get(self, name: str) -> Any:
        """Return a field, or what published files that lack it rely on, or None."""
        given = (self.fields[key] for key in self._names(name) if key in self.fields)
        return next(given, self.family.omitted.get(name))

    def need(self, name: str) -> Any:
        """Return a field that must be there and not null."""
        value = self.get(name)
        if value is None:
            raise CheckpointError(f"config.json has no {name}, which a {self.model_type} needs; add it")
        return value

    def need_stated(self, name: str) -> Any:
        """Return a field that must be there, where null says something."""
        return self.get(name) if self.stated(name) else self.need(name)

    def whole(self, name: str) -> int:
        """Return a field that must be a whole number above 0."""
        return as_int(name, self.need(name), at_least=1)

    def whole_or(self, name: str, default: int) -> int:
        """Return a field that may be null or absent, or what that stands for."""
        value = self.get(name)
        return default if value is None else as_int(name, value, at_least=1)

    def flag(self, name: str) -> bool:
        """Return a field that must be true or false."""
        return as_flag(name, self.need(name))

    @property
    def embed_dim(self) -> int:
        """Width of a token."""
        return self.whole(self.family.width)

    @property
    def vocabulary(self) -> int:
        """Number of parameters of the embeddings and of the output: one table or two."""
        return (1 if self.is_tied else 2) * self.whole("vocab_size") * self.embed_dim

    @property
    def is_tied(self) -> bool:
        """Whether the output's table is that of the embeddings."""
        tied = self.get("tie_word_embeddings")
        return as_flag("tie_word_embeddings", self.family.tied if tied is None else tied)

    def _names(self, name: str) -> tuple[str, ...]:
        return name, *self.family.aliases.get(name, ())


def in_the_way(field: str, why: str) -> UnsupportedError:
    """Build the error for a field that says what no spec can.

    Args:
        field: Its name.
        why: What it says.

    Returns:
        The error, to be raised by the caller.
    """
    return UnsupportedError(f"{field} of config.json stands in the way: {why}")


def listed(names: Iterable[str]) -> str:
    """Return names as a message lists them."""
    return ", ".join(names)


def head_dim_of(embed_dim: int, num_heads: int) -> int:
    """Return a head's width where heads share a token's width evenly; raises CheckpointError where they do not."""
    if embed_dim % num_heads:
        raise CheckpointError(f"{num_heads} heads do not divide the width of {embed_dim} that config.json gives")
    return embed_dim // num_heads
