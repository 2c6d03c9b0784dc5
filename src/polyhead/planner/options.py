"""What can stand in each of the four places of a model's layers, as changes of the layers that it has."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

from polyhead.catalog import Model
from polyhead.catalog.model import alike
from polyhead.errors import SpecError
from polyhead.planner.evidence import CHOICES, Option
from polyhead.spec import (
    Alibi,
    AttentionSpec,
    Band,
    BigBird,
    Causal,
    Differential,
    Full,
    Global,
    Grouped,
    Latent,
    LayerSpec,
    Linear,
    NoPosition,
    Pattern,
    RelativeBias,
    Rotary,
    SlidingWindow,
    Softmax,
)
from polyhead.spec.choice import divisors
from polyhead.spec.position import Position, ShawBias

GROUPS = 8
"""Key/value heads of grouped-query attention where a model has none of its own: so many, or fewer that divide heads."""

LATENT_WIDTHS = 4
"""Width of a latent, in widths of a head; its RoPE key takes half a head's, as DeepSeek-V2's 512 + 64 for 128."""

FIRST = 4
"""First tokens that a window keeps beside it."""

ONE_IN = 6
"""Of so many layers one sees all tokens, where the others have a window."""

Change = Callable[[AttentionSpec, bool], AttentionSpec]
"""What becomes of a layer's four choices, given whether it is one in `ONE_IN`; raises SpecError if undefined."""

NAMES: dict[Option, str] = {
    ("storage", "mha"): "MHA",
    ("storage", "gqa"): "GQA",
    ("storage", "mqa"): "MQA",
    ("storage", "mla"): "MLA",
    ("position", "rope"): "RoPE",
    ("position", "alibi"): "ALiBi",
    ("position", "t5"): "T5 bias",
    ("position", "shaw"): "Shaw's bias",
    ("position", "none"): "no position in it",
    ("pattern", "causal"): "causal",
    ("pattern", "full"): "full",
    ("pattern", "window"): "window",
    ("pattern", "window-first"): "window with first tokens",
    ("pattern", "mostly-window"): "mostly windows",
    ("pattern", "bigbird"): "BigBird",
    ("pattern", "other"): "a pattern of its own",
    ("weighting", "softmax"): "softmax",
    ("weighting", "linear"): "linear",
    ("weighting", "differential"): "differential",
}
"""How each kind is called where people read it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A model with some of its four choices changed.

    Attributes:
        model: The model as it would be.
        changed: The choices that differ from the model that it was made of.
    """

    model: Model
    changed: tuple[str, ...]

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        """What stands in each of the four places."""
        return kinds(self.model)

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """What stands in each of the four places, to read."""
        return _named(self.model, self.kinds)

    @property
    def name(self) -> str:
        """The four, to read."""
        return " + ".join(self.names.values())


def reference(model: Model) -> Model:
    """Return a model of the same sizes with multi-head attention, RoPE, all pairs that may meet, and softmax.

    Args:
        model: The model.

    Returns:
        The other.

    Raises:
        SpecError: If heads are so narrow that RoPE has nothing to turn.
    """

    def change(spec: AttentionSpec, _: bool) -> AttentionSpec:
        position = spec.position if isinstance(spec.position, Rotary) and not _is_latent(spec) else Rotary()
        pattern = Causal() if spec.pattern.is_causal else Full()
        return AttentionSpec(storage=_grouped(spec, spec.num_heads), position=position, pattern=pattern)

    return changed(model, change)


def variants(model: Model, *, window: int | None, sees_later: bool = False) -> Iterator[Variant]:
    """Yield a model as it is, then with other things in each combination of the four places that is defined.

    Args:
        model: The model.
        window: Tokens that a window holds. None: windows would see everything, and are left out.
        sees_later: Whether the model reads all of a sequence at once, so that BigBird's global tokens are offered.

    Yields:
        The variants, those with fewer changes first.
    """
    own = kinds(model)
    seen: set[tuple[tuple[LayerSpec, int], ...]] = set()
    patterns = _of_pattern(own, window, sees_later=sees_later)
    places = [_of_storage(own, model.layers[0].attention), _of_position(own), patterns, _of_weighting(own)]
    every = itertools.product(*([(None, None), *place.items()] for place in places))
    for combination in sorted(every, key=lambda one: sum(kind is not None for kind, _ in one)):
        chosen = {choice: change for choice, (_, change) in zip(CHOICES, combination, strict=True) if change}
        try:
            other = changed(model, *chosen.values())
        except SpecError:  # undefined together, which `polyhead.spec.rules` explains
            continue
        stacks = tuple((layer, times) for layer, times in alike(other.layers).items())
        if stacks not in seen:
            seen.add(stacks)
            yield Variant(model=other, changed=tuple(chosen))


def changed(model: Model, *changes: Change) -> Model:
    """Return a model with the same changes in all its layers; those to an encoder keep position and pattern.

    Args:
        model: The model.
        *changes: The changes, in order.

    Returns:
        The model.

    Raises:
        SpecError: If what comes out is not defined.
    """
    made: dict[tuple[int, bool], LayerSpec] = {}

    def of(layer: LayerSpec, number: int) -> LayerSpec:
        which = id(layer), (number + 1) % ONE_IN == 0
        if which not in made:
            made[which] = _changed_layer(layer, which[1], changes)
        return made[which]

    stacks = (model.layers, model.encoder_layers, model.cross_layers)
    layers, encoder, cross = (tuple(of(one, n) for n, one in enumerate(stack)) for stack in stacks)
    return model.with_layers(layers, encoder_layers=encoder, cross_layers=cross)


def _changed_layer(layer: LayerSpec, sees_all: bool, changes: tuple[Change, ...]) -> LayerSpec:
    spec = layer.attention
    for change in changes:
        spec = change(spec, sees_all)
    if layer.source == "cross":
        own = layer.attention
        if isinstance(spec.storage, Latent) and spec.storage.qk_rope_head_dim and not isinstance(own.position, Rotary):
            spec = dataclasses.replace(
                spec, position=NoPosition(), storage=dataclasses.replace(spec.storage, qk_rope_head_dim=0)
            )
        spec = dataclasses.replace(spec, position=own.position, pattern=own.pattern)
    return dataclasses.replace(layer, attention=spec, latent_norm=None)


def kinds(model: Model) -> dict[str, str]:
    """Return what stands in each of the four places of a model's layers, as the keys of `NAMES` call it."""
    first = model.layers[0].attention
    return {
        "storage": storage_kind(first),
        "position": _position_kind(first),
        "pattern": _pattern_kind([layer.attention.pattern for layer in alike(model.layers)]),
        "weighting": type(first.weighting).__name__.lower(),
    }


def storage_kind(spec: AttentionSpec) -> str:
    """Return ``"mha"``, ``"gqa"``, ``"mqa"`` or ``"mla"``."""
    if isinstance(spec.storage, Latent):
        return "mla"
    if spec.num_kv_heads == spec.num_heads:
        return "mha"
    return "mqa" if spec.num_kv_heads == 1 else "gqa"


def _position_kind(spec: AttentionSpec) -> str:
    kinds = {NoPosition: "none", Rotary: "rope", Alibi: "alibi", ShawBias: "shaw", RelativeBias: "t5"}
    return next(name for kind, name in kinds.items() if isinstance(spec.position, kind))


def _pattern_kind(patterns: list[Pattern]) -> str:
    reaches = [pattern.reach for pattern in patterns]
    bounded = [reach for reach in reaches if reach.left is not None]
    if len(bounded) == len(reaches):
        return "window-first" if any(reach.first for reach in bounded) else "window"
    if bounded:
        return "mostly-window"
    known: dict[Pattern, str] = {Causal(): "causal", Full(): "full"}
    if patterns[0] in known:
        return known[patterns[0]]
    return "bigbird" if patterns[0].per_head else "other"


def _named(model: Model, own: dict[str, str]) -> dict[str, str]:
    spec = model.layers[0].attention
    names = {choice: NAMES[choice, kind] for choice, kind in own.items()}
    if own["storage"] == "gqa":
        names["storage"] += f"-{spec.num_kv_heads}"
    if isinstance(spec.storage, Latent):
        names["storage"] += f" {spec.storage.kv_lora_rank}"
        names["storage"] += f" + {spec.storage.qk_rope_head_dim}" if spec.storage.qk_rope_head_dim else ""
    patterns = [layer.attention.pattern for layer in alike(model.layers) if _is_bounded(layer)]
    if own["pattern"] in {"window", "mostly-window"} and patterns:
        names["pattern"] += f" of {max(map(_size, patterns)):,}"
    if isinstance(spec.weighting, Softmax) and spec.weighting.sink:
        names["weighting"] += " with sinks"
    return names


def _size(pattern: Pattern) -> int:
    """Return how many keys a query sees at most where a pattern is bounded, later ones too."""
    right = pattern.right or 0 if isinstance(pattern, Band) else 0
    return int(pattern.reach.size()) + right


def _is_bounded(layer: LayerSpec) -> bool:
    return layer.attention.pattern.reach.left is not None


def _is_latent(spec: AttentionSpec) -> bool:
    return isinstance(spec.storage, Latent)


def _grouped(spec: AttentionSpec, kv_heads: int) -> Grouped:
    """Return grouped heads for a spec's; a latent's are as wide as its values."""
    if spec.num_heads % kv_heads:
        raise SpecError(f"{spec.num_heads} heads do not form {kv_heads} groups")
    if isinstance(spec.storage, Latent):
        return Grouped(num_heads=spec.num_heads, num_kv_heads=kv_heads, head_dim=spec.v_head_dim)
    return dataclasses.replace(spec.storage, num_kv_heads=kv_heads)


def _as_grouped(kv_heads: int | None) -> Change:
    def change(spec: AttentionSpec, _: bool) -> AttentionSpec:
        position = spec.position
        if isinstance(spec.storage, Latent) and isinstance(position, Rotary):
            position = dataclasses.replace(position, rotary_dim=None)
        return dataclasses.replace(spec, storage=_grouped(spec, kv_heads or spec.num_heads), position=position)

    return change


def _as_latent(spec: AttentionSpec, _: bool) -> AttentionSpec:
    width, position = spec.qk_head_dim, spec.position
    rotates = isinstance(position, Rotary)
    storage = Latent(
        num_heads=spec.num_heads,
        kv_lora_rank=LATENT_WIDTHS * width,
        qk_nope_head_dim=width,
        qk_rope_head_dim=width // 2 if rotates else 0,
        v_head_dim=spec.v_head_dim,
    )
    if isinstance(position, Rotary):
        position = dataclasses.replace(position, rotary_dim=None)
    return dataclasses.replace(spec, storage=storage, position=position)


def _of_storage(own: dict[str, str], spec: AttentionSpec) -> dict[str, Change]:
    groups = max(count for count in divisors(spec.num_heads) if count <= GROUPS)
    every: dict[str, Change] = {
        "mha": _as_grouped(None),
        "gqa": _as_grouped(groups),
        "mqa": _as_grouped(1),
        "mla": _as_latent,
    }
    return {kind: change for kind, change in every.items() if kind != own["storage"]}


def _of_position(own: dict[str, str]) -> dict[str, Change]:
    def to(spec: AttentionSpec, kind: str) -> AttentionSpec:
        every: dict[str, Position] = {
            "rope": Rotary(),
            "alibi": Alibi(),
            "t5": RelativeBias.t5(bidirectional=not spec.pattern.is_causal),
            "none": NoPosition(),
        }
        storage = spec.storage
        if isinstance(storage, Latent):
            storage = dataclasses.replace(
                storage, qk_rope_head_dim=storage.qk_nope_head_dim // 2 if kind == "rope" else 0
            )
        return dataclasses.replace(spec, position=every[kind], storage=storage)

    return {
        kind: lambda spec, _, kind=kind: to(spec, kind)  # type: ignore[misc]
        for kind in ("rope", "alibi", "t5", "none")
        if kind != own["position"]
    }


def _of_pattern(own: dict[str, str], window: int | None, *, sees_later: bool) -> dict[str, Change]:
    def banded(pattern: Pattern) -> Pattern:
        size = window or 1
        return SlidingWindow.causal(size) if pattern.is_causal else SlidingWindow.symmetric(size // 2)

    def all_seen(pattern: Pattern) -> Pattern:
        return Causal() if pattern.is_causal else Full()

    made: dict[str, Callable[[Pattern, bool], Pattern]] = {
        "causal": lambda pattern, _: all_seen(pattern),
        "mostly-window": lambda pattern, sees_all: all_seen(pattern) if sees_all else banded(pattern),
        "window-first": lambda pattern, _: (banded(pattern) | Global(first=FIRST)) & all_seen(pattern),
        "window": lambda pattern, _: banded(pattern),
    }
    if sees_later:
        made |= {"bigbird": lambda *_: BigBird(block=64, radius=1, num_global=2, num_random=3, span="all")}
        made.pop("window-first")
    if own["pattern"] == "full":
        made.pop("causal")
    if window is None:
        made = {kind: make for kind, make in made.items() if "window" not in kind}

    def changing(make: Callable[[Pattern, bool], Pattern]) -> Change:
        return lambda spec, sees_all: dataclasses.replace(spec, pattern=make(spec.pattern, sees_all))

    return {kind: changing(make) for kind, make in made.items() if kind != own["pattern"]}


def _of_weighting(own: dict[str, str]) -> dict[str, Change]:
    def differential(spec: AttentionSpec, _: bool) -> AttentionSpec:
        return dataclasses.replace(spec, storage=_halved(spec.storage), weighting=Differential())

    def linear(spec: AttentionSpec, _: bool) -> AttentionSpec:
        return dataclasses.replace(spec, weighting=Linear())

    every: dict[str, Change] = {"differential": differential, "linear": linear}
    return {kind: change for kind, change in every.items() if kind != own["weighting"]} if _is_plain(own) else {}


def _is_plain(own: dict[str, str]) -> bool:
    """Whether heads are those of one map each, from which two maps can be made."""
    return own["weighting"] == "softmax"


def _halved(storage: Grouped | Latent) -> Grouped | Latent:
    """Return half as many heads, or else half as wide ones, so that two maps take what one did."""
    if isinstance(storage, Latent):
        if storage.num_heads % 2:
            raise SpecError(f"{storage.num_heads} heads cannot be paired")
        return dataclasses.replace(storage, num_heads=storage.num_heads // 2, v_head_dim=2 * storage.v_head_dim)
    if storage.num_heads % 2 == 0 and (storage.kv_heads % 2 == 0 or storage.kv_heads == 1):
        kv_heads = max(1, storage.kv_heads // 2)
        return Grouped(num_heads=storage.num_heads // 2, num_kv_heads=kv_heads, head_dim=storage.head_dim)
    return Grouped(num_heads=storage.num_heads, num_kv_heads=storage.kv_heads, head_dim=storage.head_dim // 2)
