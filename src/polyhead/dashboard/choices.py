"""The form in which a spec is filled in, read off the spec's own dataclasses.

It says what can stand in each of the four places, and which fields that has.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any

from polyhead.errors import SpecError
from polyhead.spec import (
    Alibi,
    Band,
    BigBird,
    Causal,
    Chunked,
    Differential,
    DynamicNTKScaling,
    Full,
    Global,
    Grouped,
    Latent,
    Linear,
    LinearScaling,
    Llama3Scaling,
    NoPosition,
    NTKScaling,
    Pattern,
    RandomLinks,
    Rotary,
    SlidingWindow,
    Softmax,
    YarnScaling,
)
from polyhead.spec.choice import Choice
from polyhead.spec.position import ClippedBias, ShawBias, T5Bias
from polyhead.spec.weighting import DIFFERENTIAL_FORMS, FEATURE_MAPS

SIZES: Mapping[str, Any] = {
    "num_heads": 32,
    "head_dim": 128,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "max_distance": 128,
    "per_query": 8,
    "seed": 0,
    "size": 64,
    "first": 1,
    "factor": 4.0,
    "original_max_seq_len": 4096,
}
"""What stands in a field that has no default."""

WORDS: Mapping[str, tuple[str, ...]] = {
    "pairs": ("half", "interleaved"),
    "direction": ("paper", "reversed"),
    "feature_map": FEATURE_MAPS,
    "form": DIFFERENTIAL_FORMS,
    "span": ("past", "all"),
}
"""What a field may say that holds a word."""

KINDS: Mapping[Any, str] = {int: "int", float: "float", bool: "bool", str: "choice"}

LARGEST_LEAST = 16
"""The largest least whole number that is looked for."""

SCALINGS = (
    ("linear", LinearScaling),
    ("NTK-aware", NTKScaling),
    ("dynamic NTK", DynamicNTKScaling),
    ("YaRN", YarnScaling),
    ("LLaMA 3's", Llama3Scaling),
)
STORAGE = (("heads and groups", Grouped), ("a latent", Latent))
POSITION = (
    ("none", NoPosition),
    ("RoPE", Rotary),
    ("ALiBi", Alibi),
    ("T5's bias", T5Bias),
    ("a clipped bias", ClippedBias),
    ("Shaw's vectors", ShawBias),
)
WEIGHTING = (("softmax", Softmax), ("linear", Linear), ("differential", Differential))
PATTERNS = (
    ("a window", Band),
    ("chunks", Chunked),
    ("global tokens", Global),
    ("random links", RandomLinks),
)
_FORMS: tuple[tuple[str, Pattern], ...] = (
    ("every pair", Full()),
    ("causal", Causal()),
    ("a window on either side", SlidingWindow.symmetric(128)),
    ("a window, causal", SlidingWindow.causal(4096)),
    ("chunks", Chunked(size=64)),
    ("chunks, causal", Chunked(size=8192) & Causal()),
    ("a window and global tokens", SlidingWindow.symmetric(128) | Global(first=1)),
    ("first tokens and a window, causal", (SlidingWindow(left=4095) | Global(first=4)) & Causal()),
    ("random links", RandomLinks(per_query=8, seed=0)),
    ("BigBird", BigBird(radius=64, num_global=1, num_random=3)),
    ("BigBird, causal", BigBird(radius=64, num_global=1, num_random=3) & Causal()),
)


def choices() -> dict[str, list[dict[str, Any]]]:
    """Return what can stand in each of the four places, with its fields.

    A field has its ``name``, its ``kind``, its ``default``, whether it is ``optional`` (null says: not given), its
    least value ``min``, its ``choices`` if it holds a word, its ``help``, and ``at``: where it stands in ``data``.
    """
    return {
        "storage": [described(*one) for one in STORAGE],
        "position": [described(*one) for one in POSITION],
        "pattern": [_pattern(*one) for one in _FORMS],
        "weighting": [described(*one) for one in WEIGHTING],
    }


def described(label: str, kind: type[Choice]) -> dict[str, Any]:
    """Return what stands in the form for a class of a spec's parts.

    Args:
        label: Its name to read.
        kind: The class.

    Returns:
        Its ``type``, an example of its ``data``, its ``fields``, and the names of those that are ``required``.
    """
    example = kind(**_required(kind))
    fields = _fields(example, [])
    return {
        "type": kind.__name__,
        "label": label,
        "data": example.to_data(),
        "fields": fields,
        "required": list(_required(kind)),
    }


def _pattern(label: str, pattern: Pattern) -> dict[str, Any]:
    """Return a pattern of the form: fields of its parts, those that mean one thing together as one."""
    fields = [field for part, at in _primitives(pattern, []) for field in _fields(part, at)]
    shown = [field for field in fields if field["default"] is not None or field["name"] == "block"]
    return {"type": type(pattern).__name__, "label": label, "data": pattern.to_data(), "fields": shown}


def _primitives(pattern: Any, at: list[str | int]) -> list[tuple[Choice, list[str | int]]]:
    """Return the parts that a pattern is made of, each with where it stands in its data; `Causal()` has no field."""
    parts = getattr(pattern, "parts", None)
    if parts is None:
        return [] if pattern in (Causal(), Full()) else [(pattern, at)]
    return [one for index, part in enumerate(parts) for one in _primitives(part, [*at, "parts", index])]


def _fields(example: Choice, at: list[str | int]) -> list[dict[str, Any]]:
    kind = type(example)
    help_of, hints = _help(kind), typing.get_type_hints(kind)
    found = []
    for field in dataclasses.fields(kind):
        types = typing.get_args(hints[field.name]) or (hints[field.name],)
        what = next((KINDS[one] for one in types if one in KINDS), None)
        value = getattr(example, field.name)
        told = {"name": field.name, "optional": type(None) in types, "help": help_of.get(field.name, "")}
        told |= {"at": [*at, field.name], "default": value, "choices": None, "min": None}
        if what == "choice":
            found.append({**told, "kind": what, "choices": list(WORDS[field.name])})
        elif what is not None:
            found.append({**told, "kind": what, "min": _least(kind, field.name) if what == "int" else None})
        elif any(isinstance(one, type) and one.__name__ == "Scaling" for one in types):
            found.append({**told, "kind": "part", "choices": [described(*one) for one in SCALINGS]})
    return found  # a tuple of numbers has no field in a form


def _required(kind: type[Choice]) -> dict[str, Any]:
    """Return something for each field that has no default."""
    names = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    return {name: SIZES[name] for name in names}


def _least(kind: type[Choice], name: str) -> int | None:
    """Return the least whole number that a field may hold, the others being at their defaults."""

    def is_allowed(number: int) -> bool:
        try:
            kind(**{**_required(kind), name: number})
        except SpecError:
            return False
        return True

    return next((number for number in range(LARGEST_LEAST + 1) if is_allowed(number)), None)


def _help(kind: type[Choice]) -> dict[str, str]:
    """Return what a class's docstring says of its fields, the first sentence of each."""
    text = inspect.getdoc(kind) or ""
    _, _, attributes = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + attributes.split("\n\n")[0]):
        name, colon, told = entry.strip().partition(":")
        if colon:
            found[name] = re.split(r"(?<=\.) (?=[A-Z])", " ".join(told.split()).replace("``", ""))[0]
    return found
