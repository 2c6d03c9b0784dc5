"""The whole spec: four choices that fit together, what they imply, and their JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

from polyhead.errors import SpecError
from polyhead.spec import combined, links, pattern, position, scaling, storage, weighting
from polyhead.spec.choice import Choice, as_flag, as_float, as_int, one_of
from polyhead.spec.pattern import Full, Pattern
from polyhead.spec.position import NoPosition, Position, RelativeBias, Rotary, ShawBias
from polyhead.spec.rules import Choices, refusal
from polyhead.spec.storage import Grouped, Latent, Storage
from polyhead.spec.weighting import Differential, Linear, Softmax, Weighting

T = TypeVar("T", bound=Choice)

SCHEMA = 1
"""Version of the JSON form. Files of every earlier version stay readable."""


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class AttentionSpec(Choice):
    """An attention mechanism as four choices.

    ::

        spec = AttentionSpec(
            storage=Grouped(num_heads=32, num_kv_heads=8, head_dim=128),
            position=Rotary(theta=500_000.0),
            pattern=Causal(),
        )
        AttentionSpec.from_json(spec.to_json()) == spec  # True

    Attributes:
        storage: What is stored, and shared between heads.
        position: What goes into queries and keys, or is added to the score, to tell positions apart.
        pattern: Which pairs may meet.
        weighting: How scores become weights.

    Raises SpecError where the four are not defined together; see `polyhead.spec.rules`.
    """

    storage: Storage
    position: Position = NoPosition()
    pattern: Pattern = Full()
    weighting: Weighting = Softmax()

    def __post_init__(self) -> None:
        kinds: dict[str, tuple[Any, str]] = {
            "storage": (Storage, "Grouped(num_heads=8, head_dim=64)"),
            "position": (Position, "Rotary()"),
            "pattern": (Pattern, "Causal()"),
            "weighting": (Weighting, "Softmax()"),
        }
        for name, (kind, example) in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise SpecError(f"{name}={getattr(self, name)!r} is not a {name}; use for example {example}")
        if isinstance(self.storage, Grouped) and self.storage.v_head_dim == self._default_v_head_dim:
            object.__setattr__(self, "storage", dataclasses.replace(self.storage, v_head_dim=None))
        if found := refusal(Choices(**{name: getattr(self, name) for name in kinds})):
            nearest = AttentionSpec(**{name: getattr(found.nearest, name) for name in kinds})
            raise SpecError(f"{found.reason}; the nearest legal spec is {nearest!r}")

    @property
    def _default_v_head_dim(self) -> int:
        assert isinstance(self.storage, Grouped)
        return self.storage.head_dim * self.num_maps

    @property
    def num_maps(self) -> int:
        """Score maps behind one output head: 2 with differential weighting, else 1."""
        return 2 if isinstance(self.weighting, Differential) else 1

    @property
    def num_heads(self) -> int:
        """Number of output heads."""
        return self.storage.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Number of value heads, and of key heads for each map."""
        return self.storage.kv_heads

    @property
    def group_size(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def qk_head_dim(self) -> int:
        """Width of a query and of a key, of one map."""
        return self.storage.qk_head_dim

    @property
    def v_head_dim(self) -> int:
        """Width of a value and of an output head."""
        return self.storage.v_head_dim or self._default_v_head_dim

    @property
    def rotary_dim(self) -> int:
        """Number of widths that RoPE turns; 0 without RoPE."""
        if not isinstance(self.position, Rotary):
            return 0
        whole = self.storage.qk_rope_head_dim if isinstance(self.storage, Latent) else self.storage.head_dim
        return self.position.rotary_dim or whole

    @property
    def rotary_offset(self) -> int:
        """First width that RoPE turns: 0, or with `Latent` where the query's RoPE part begins."""
        return self.storage.qk_nope_head_dim if isinstance(self.storage, Latent) else 0

    @property
    def scale(self) -> float:
        """Factor on q·k before anything else; 1 with linear weighting, which has none."""
        if isinstance(self.weighting, Linear):
            return 1.0
        given = self.weighting.scale if isinstance(self.weighting, Softmax) else None
        return 1.0 / math.sqrt(self.qk_head_dim) if given is None else given

    def map_of(self, head: int, index: int) -> tuple[int, int]:
        """Return which query map and which key map make map ``index`` (0 or 1) of an output head."""
        kv_head = head // self.group_size
        if isinstance(self.weighting, Differential) and self.weighting.form == "diffllama":
            return head + index * self.num_heads, kv_head + index * self.num_kv_heads
        return head * self.num_maps + index, kv_head * self.num_maps + index

    def input_shapes(self) -> dict[str, tuple[int, int] | None]:
        """Return heads and width of each input: ``{"query": (heads, width), "key": ..., "value": ...}``.

        With `Latent` the key is the cached row, ``(1, kv_lora_rank + qk_rope_head_dim)``, and the value None.
        """
        query = (self.num_heads * self.num_maps, self.qk_head_dim)
        if isinstance(self.storage, Latent):
            return {
                "query": query,
                "key": (1, self.storage.kv_lora_rank + self.storage.qk_rope_head_dim),
                "value": None,
            }
        kv_heads = self.num_kv_heads
        return {
            "query": query,
            "key": (kv_heads * self.num_maps, self.qk_head_dim),
            "value": (kv_heads, self.v_head_dim),
        }

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the learned tensors that this mechanism has, by name, with their shapes.

        - ``bias_table`` ``[entries, num_heads]``: T5's and the clipped bias.
        - ``relative_keys``, ``relative_values`` ``[entries, width]``: Shaw's vectors.
        - ``sinks`` ``[num_heads]``: the sinks' logits.
        - ``lambda_q1``, ``lambda_k1``, ``lambda_q2``, ``lambda_k2`` ``[qk_head_dim]`` and ``sub_norm``
          ``[v_head_dim]``: differential weighting's (``sub_norm`` in the paper's form alone).
        - ``w_uk`` ``[key maps, qk_nope_head_dim, kv_lora_rank]``, ``w_uv`` ``[num_heads, v_head_dim,
          kv_lora_rank]``: the latent's up-projections, where key maps are ``num_heads``, or twice that with
          differential weighting.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        if isinstance(self.storage, Latent):
            rank = self.storage.kv_lora_rank
            shapes["w_uk"] = (self.num_heads * self.num_maps, self.storage.qk_nope_head_dim, rank)
            shapes["w_uv"] = (self.num_heads, self.v_head_dim, rank)
        if isinstance(self.position, ShawBias):
            shapes["relative_keys"] = (self.position.num_entries, self.qk_head_dim)
            shapes["relative_values"] = (self.position.num_entries, self.v_head_dim)
        elif isinstance(self.position, RelativeBias):
            shapes["bias_table"] = (self.position.num_entries, self.num_heads)
        if isinstance(self.weighting, Softmax) and self.weighting.sink:
            shapes["sinks"] = (self.num_heads,)
        if isinstance(self.weighting, Differential) and self.weighting.form != "clipped":
            for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
                shapes[name] = (self.qk_head_dim,)
            if self.weighting.form == "paper":
                shapes["sub_norm"] = (self.v_head_dim,)
        return shapes

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the spec as JSON, with the schema's version."""
        return _to_json(self, indent)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a spec from JSON of this schema version or an earlier one.

        Args:
            text: What `to_json` returned.

        Returns:
            The spec.

        Raises:
            SpecError: If the text is not JSON, not a spec, of a later schema, or not legal.
        """
        return _from_json(cls, text)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from polyhead.spec.notebook import of_spec

        return of_spec(self)


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class LayerSpec(Choice):
    """An attention layer of a model: the four choices, and what a layer has besides.

    Attributes:
        attention: The four choices.
        embed_dim: Width of the layer's input and output.
        source: Where keys and values come from: ``"self"``, or ``"cross"`` for another sequence.
        context_dim: Width of that sequence, with ``"cross"`` alone. None: ``embed_dim``.
        qkv_bias: Whether the query, key and value projections have a bias; with `Latent` those into a latent.
        out_bias: Whether the output projection has one.
        qk_norm: Whether queries and keys go through an RMS norm per head before position enters; with `Grouped`
            alone, since a latent's keys are never formed when it decodes.
        latent_norm: Whether the latents of keys and of queries go through an RMS norm, with `Latent` alone.
            None: they do.
        norm_eps: ε of these norms.
    """

    attention: AttentionSpec
    embed_dim: int
    source: str = "self"
    context_dim: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    latent_norm: bool | None = None
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if not isinstance(self.attention, AttentionSpec):
            raise SpecError(f"attention={self.attention!r} is not an AttentionSpec")
        self._keep(as_int, "embed_dim", at_least=1)
        one_of("source", self.source, ("self", "cross"))
        self._keep(as_int, "context_dim", at_least=1)
        self._keep(as_flag, "qkv_bias", "out_bias", "qk_norm", "latent_norm")
        self._keep(as_float, "norm_eps", above=0.0)
        if self.source == "cross":
            object.__setattr__(self, "context_dim", self.context_dim or self.embed_dim)
        elif self.context_dim is not None:
            raise SpecError(f"context_dim={self.context_dim} says nothing with source='self'; use source='cross'")
        if isinstance(self.attention.storage, Latent):
            if self.qk_norm:
                raise SpecError("qk_norm=True needs the keys of every head, which Latent never forms; use latent_norm")
            object.__setattr__(self, "latent_norm", self.latent_norm is not False)
        elif self.latent_norm is not None:
            raise SpecError(f"latent_norm={self.latent_norm} says nothing with Grouped, which has no latent; leave it")

    @classmethod
    def of(cls, spec: LayerSpec | AttentionSpec, embed_dim: int | None = None) -> LayerSpec:
        """Return a layer as it is, or one of four choices and a width.

        Args:
            spec: A layer or an `AttentionSpec`.
            embed_dim: The width that goes with the latter.

        Returns:
            The layer.

        Raises:
            SpecError: If the width is missing, or given twice.
        """
        if not isinstance(spec, LayerSpec):
            if embed_dim is None:
                raise SpecError("an AttentionSpec says nothing of the layer's width; give embed_dim=, or a LayerSpec")
            return cls(attention=spec, embed_dim=embed_dim)
        if embed_dim is not None:
            raise SpecError(
                f"embed_dim={embed_dim} is given beside a LayerSpec, which has {spec.embed_dim}; leave it out"
            )
        return spec

    @property
    def parameters(self) -> int:
        """Number of learned numbers."""
        return sum(map(math.prod, self.parameter_shapes().values()))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every learned tensor of the layer, by the name that it has in the layer's state dict.

        Projections are ``[out, in]``: ``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj``; with `Latent`
        ``kv_a_proj`` makes the stored row, and with ``q_lora_rank`` ``q_a_proj`` and ``q_b_proj`` replace
        ``q_proj``. Norms are ``q_norm`` and ``k_norm``, or ``q_a_norm`` and ``kv_a_norm``. Then come those of
        `AttentionSpec.parameter_shapes`.
        """
        spec, storage = self.attention, self.attention.storage
        query_width = spec.num_heads * spec.num_maps * spec.qk_head_dim
        source_dim = self.context_dim or self.embed_dim
        shapes: dict[str, tuple[int, ...]] = {}

        def linear(name: str, out_dim: int, in_dim: int, *, bias: bool) -> None:
            shapes[f"{name}.weight"] = (out_dim, in_dim)
            if bias:
                shapes[f"{name}.bias"] = (out_dim,)

        def norm(name: str, width: int, *, present: bool | None) -> None:
            if present:
                shapes[f"{name}.weight"] = (width,)

        if isinstance(storage, Latent) and storage.q_lora_rank is not None:
            linear("q_a_proj", storage.q_lora_rank, self.embed_dim, bias=self.qkv_bias)
            norm("q_a_norm", storage.q_lora_rank, present=self.latent_norm)
            linear("q_b_proj", query_width, storage.q_lora_rank, bias=False)
        else:
            linear("q_proj", query_width, self.embed_dim, bias=self.qkv_bias and not isinstance(storage, Latent))
        if isinstance(storage, Latent):
            linear("kv_a_proj", storage.kv_lora_rank + storage.qk_rope_head_dim, source_dim, bias=self.qkv_bias)
            norm("kv_a_norm", storage.kv_lora_rank, present=self.latent_norm)
        else:
            linear("k_proj", spec.num_kv_heads * spec.num_maps * spec.qk_head_dim, source_dim, bias=self.qkv_bias)
            linear("v_proj", spec.num_kv_heads * spec.v_head_dim, source_dim, bias=self.qkv_bias)
            norm("q_norm", spec.qk_head_dim, present=self.qk_norm)
            norm("k_norm", spec.qk_head_dim, present=self.qk_norm)
        linear("o_proj", self.embed_dim, spec.num_heads * spec.v_head_dim, bias=self.out_bias)
        return {**shapes, **spec.parameter_shapes()}

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the layer as JSON, with the schema's version."""
        return _to_json(self, indent)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a layer from JSON; raises SpecError as `AttentionSpec.from_json` does."""
        return _from_json(cls, text)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from polyhead.spec.notebook import of_layer

        return of_layer(self)


def part_from_data(data: Mapping[str, Any]) -> Choice:
    """Build a part of a spec, or a whole one, from decoded JSON.

    Args:
        data: What `Choice.to_data` returned.

    Returns:
        The part.

    Raises:
        SpecError: If no part has that type, or its fields are not allowed.
    """
    if not isinstance(data, Mapping):
        raise SpecError(f"expected a part of a spec, got {type(data).__name__}; write one with to_data()")
    found = _decode(dict(data), _choice_types())
    assert isinstance(found, Choice)
    return found


def _choice_types() -> dict[str, Callable[[Mapping[str, Any]], Choice]]:
    """Return how each type name of the JSON form is built."""
    modules = (storage, position, scaling, pattern, combined, links, weighting)
    bases = (Choice, scaling.Scaling, RelativeBias, Pattern, combined.Combined, links.Linked)
    named: list[type] = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    kinds: list[type[Choice]] = [kind for kind in named if issubclass(kind, Choice) and kind not in bases]
    kinds += [AttentionSpec, LayerSpec]
    return {kind.__name__: kind.from_fields for kind in kinds}


def _to_json(spec: Choice, indent: int | None) -> str:
    return json.dumps({"schema": SCHEMA, **spec.to_data()}, indent=indent, ensure_ascii=False)


def _from_json(kind: type[T], text: str) -> T:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"this is not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("type") != kind.__name__:
        found = data.get("type") if isinstance(data, dict) else type(data).__name__
        raise SpecError(f"expected the JSON of a {kind.__name__}, got {found!r}; write one with to_json()")
    schema = data.pop("schema", None)
    if type(schema) is not int or not 1 <= schema <= SCHEMA:  # bool is an int too
        raise SpecError(f"schema={schema!r} is not one this version reads (1 to {SCHEMA}); a newer polyhead may")
    decoded = _decode(data, _choice_types())
    assert isinstance(decoded, kind)
    return decoded


def _decode(data: Any, types: Mapping[str, Callable[[Mapping[str, Any]], Choice]]) -> Any:
    if isinstance(data, list):
        return tuple(_decode(item, types) for item in data)
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    if not isinstance(name, str) or name not in types:
        raise SpecError(f"no part of a spec has the type {name!r}; known are {', '.join(sorted(types))}")
    return types[name]({key: _decode(value, types) for key, value in data.items() if key != "type"})
