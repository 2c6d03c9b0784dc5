"""What a spec means, in words: each of its choices, what a cache keeps for it, and what it learns."""

from __future__ import annotations

from collections.abc import Mapping

from polyhead.errors import SpecError
from polyhead.spec.attention import AttentionSpec
from polyhead.spec.caching import Retention, retention
from polyhead.spec.combined import AllOf, AnyOf
from polyhead.spec.links import Links, RandomLinks
from polyhead.spec.pattern import Band, Chunked, Full, Global, Pattern
from polyhead.spec.position import Alibi, NoPosition, Position, RelativeBias, Rotary, ShawBias
from polyhead.spec.storage import Latent, Storage
from polyhead.spec.weighting import Differential, Linear, Softmax, Weighting

CHOICES = ("storage", "position", "pattern", "weighting")


def meanings(spec: AttentionSpec) -> dict[str, str]:
    """Return what each of the four choices of a spec means, by its name."""
    return {
        "storage": _storage(spec.storage),
        "position": _position(spec.position),
        "pattern": _pattern(spec.pattern),
        "weighting": _weighting(spec.weighting),
    }


def cached(spec: AttentionSpec, source: str = "self") -> str:
    """Return what a cache keeps for a spec, or why it has none; ``source`` is that of `retention`."""
    try:
        return kept(retention(spec, source))
    except SpecError as error:
        return f"none: {error}"


def kept(found: Retention) -> str:
    """Return what is kept, with its numbers."""
    if found.kind == "state":
        return f"state, {found.row:,} numbers whatever the length"
    window = f", of at most {found.reach.size():,} tokens" if found.kind == "rolling" else ""
    return f"{found.kind}, {found.row:,} numbers a token{window}"


def learned(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return learned tensors with their shapes."""
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "nothing"


def _storage(storage: Storage) -> str:
    heads = _count(storage.num_heads, "head")
    if isinstance(storage, Latent):
        rope = f" and a RoPE key of {storage.qk_rope_head_dim}" if storage.qk_rope_head_dim else ""
        return f"a latent of {storage.kv_lora_rank} numbers{rope} for each token, unfolded for {heads}"
    if storage.num_heads == 1:
        return "one head, with a key and a value for each token"
    if storage.kv_heads == storage.num_heads:
        return f"{heads}, each with keys and values of its own"
    groups = "one key and one value" if storage.kv_heads == 1 else f"the keys and values of {storage.kv_heads} groups"
    return f"{heads} share {groups}"


def _position(position: Position) -> str:
    if isinstance(position, NoPosition):
        return "nothing tells positions apart but the pattern"
    if isinstance(position, Rotary):
        stretched = f", stretched by {type(position.scaling).__name__}" if position.scaling else ""
        return f"queries and keys turn by an angle that grows with position, base {position.theta:,g}{stretched}"
    if isinstance(position, Alibi):
        return "a slope times the distance is taken from each score; each head has its own slope"
    if isinstance(position, ShawBias):
        return f"a learned vector for each distance up to {position.max_distance} is added to keys and to values"
    assert isinstance(position, RelativeBias)
    return (
        f"a learned number for each of {position.num_entries} kinds of distance, for each head, is added to the score"
    )


def _pattern(pattern: Pattern) -> str:
    if isinstance(pattern, AllOf | AnyOf):
        which = "all of these let" if isinstance(pattern, AllOf) else "any of these lets"
        parts = (f"({_pattern(part)})" if isinstance(part, AllOf | AnyOf) else _pattern(part) for part in pattern.parts)
        return f"what {which} it see: {'; '.join(parts)}"
    if isinstance(pattern, Chunked):
        return (
            f"a query sees {_around('its own chunk', pattern.left, pattern.right, 'chunk')}, of {pattern.size} tokens"
        )
    if isinstance(pattern, Global):
        return _global(pattern)
    if isinstance(pattern, RandomLinks):
        unit = "key" if pattern.block is None else f"block of {pattern.block} keys"
        return f"a query sees {_count(pattern.per_query, unit)} drawn at random"
    if isinstance(pattern, Links):
        return "a query sees the keys that a table lists for it"
    assert isinstance(pattern, Band)
    if pattern == Full():
        return "a query sees every key"
    return f"a query sees {_around('itself', pattern.left, pattern.right, 'token')}"


def _global(pattern: Global) -> str:
    ends = [
        f"the {name} {'token' if size == 1 else f'{size} tokens'}"
        for name, size in (("first", pattern.first), ("last", pattern.last))
        if size
    ]
    is_one = pattern.first + pattern.last == 1
    return f"{' and '.join(ends)} {'sees all and is' if is_one else 'see all and are'} seen by all"


def _around(own: str, left: int | None, right: int | None, unit: str) -> str:
    """Return how far a query sees on either side, in words; None is without end."""
    sides = [
        f"{'all' if size is None else _count(size, unit)} {where} it"
        for size, where in ((left, "before"), (right, "after"))
        if size != 0
    ]
    return " and ".join([own, *sides]) if len(sides) < 2 else f"{own}, {sides[0]} and {sides[1]}"


def _count(number: int, unit: str) -> str:
    first, *rest = unit.split(" ")
    return f"{number:,} {' '.join([first if number == 1 else f'{first}s', *rest])}"


def _weighting(weighting: Weighting) -> str:
    if isinstance(weighting, Linear):
        return f"products of features φ = {weighting.feature_map} in place of a softmax, so that sums replace the cache"
    if isinstance(weighting, Differential):
        after = {
            "paper": "normed head by head with a learned weight",
            "diffllama": "normed head by head",
            "clipped": "with negative weights set to 0 and each row rescaled to 1",
        }[weighting.form]
        return f"the difference of two softmax maps, λ_init = {weighting.initial_lambda:.4g}, {after}"
    assert isinstance(weighting, Softmax)
    extras = [
        None if weighting.scale is None else f"scores times {weighting.scale:g}",
        None if weighting.softcap is None else f"scores bounded to ±{weighting.softcap:g}",
        "a learned sink that takes weight and gives no value" if weighting.sink else None,
    ]
    return "; ".join(filter(None, ["the softmax of the scores that a query may see", *extras]))
