"""What keeps a request small whose form alone does not: how deep and how large a spec may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from polyhead.errors import ShapeError, SpecError
from polyhead.spec import SCHEMA, AttentionSpec
from polyhead.spec.attention import part_from_data

T = TypeVar("T")

MAX_DEPTH = 8
"""How deep a spec's parts may stand in each other."""

MAX_VALUES = 20_000
"""Values that a spec may hold: as many entries a table of links may have."""

MAX_WHOLE = 2**20
MAX_REAL = 1e12
MAX_HEADS = 512
MAX_SEED = 2**31
MAX_TEXT = 64

LARGEST = {
    "num_heads": MAX_HEADS,
    "num_kv_heads": MAX_HEADS,
    "first_head": MAX_HEADS,
    "total_heads": 2 * MAX_HEADS,
    "head_dim": 4096,
    "v_head_dim": 8192,
    "qk_nope_head_dim": 4096,
    "qk_rope_head_dim": 4096,
    "rotary_dim": 4096,
    "kv_lora_rank": 16384,
    "q_lora_rank": 16384,
    "num_buckets": 4096,
    "max_distance": 65536,
    "per_query": 128,
    "seed": MAX_SEED,
}
"""The largest whole number of a field; of others it is 2²⁰."""


def spec_of(data: Mapping[str, Any]) -> AttentionSpec:
    """Read a spec that came with a request.

    Args:
        data: Its JSON form, with or without the schema's version.

    Returns:
        The spec.

    Raises:
        SpecError: If it is none, not legal, or larger than a dashboard works with.
    """
    check_part(data)
    fields = {"type": "AttentionSpec", **data}
    schema = fields.pop("schema", SCHEMA)
    if schema != SCHEMA or isinstance(schema, bool):
        raise SpecError(f"schema={schema!r} is not one this version reads ({SCHEMA})")
    found = part_from_data(fields)
    if not isinstance(found, AttentionSpec):
        raise SpecError(f"expected the JSON of an AttentionSpec, got {type(found).__name__!r}")
    return found


def check_part(data: Any) -> None:
    """Check that a part of a spec is no larger than a dashboard works with.

    Args:
        data: Its JSON form.

    Raises:
        SpecError: If it is; the message says where.
    """
    left = MAX_VALUES

    def visit(name: str, value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise SpecError(f"a spec of more than {MAX_VALUES:,} values is too large for the dashboard")
        if isinstance(value, dict | list) and depth == MAX_DEPTH:
            raise SpecError(f"{name} stands more than {MAX_DEPTH} deep; write the spec with fewer parts in parts")
        if isinstance(value, dict):
            for key, inner in value.items():
                _check_text(key)
                visit(key, inner, depth + 1)
        elif isinstance(value, list):
            for inner in value:
                visit(name, inner, depth + 1)
        else:
            _check_value(name, value)

    visit("spec", data, 0)


def computed(work: Callable[[], T]) -> T:
    """Do arithmetic whose numbers a request chose, and say so where they are too large or too small for it.

    Args:
        work: What computes.

    Returns:
        What it returns.

    Raises:
        ShapeError: If a number overflows, or a division has no result.
    """
    import numpy as np

    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            return work()
    except ArithmeticError as error:
        raise ShapeError(f"these numbers are too large or too small to compute with ({error}); give others") from error


def _check_value(name: str, value: Any) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int) and abs(value) > (most := LARGEST.get(name, MAX_WHOLE)):
        raise SpecError(f"{name}={_short(value)} is past {most:,}, the most that the dashboard works with; give less")
    elif isinstance(value, float) and not abs(value) <= MAX_REAL:
        raise SpecError(f"{name}={value!r} is past {MAX_REAL:g}, the most that the dashboard works with; give less")


def _short(number: int) -> str:
    return str(number) if abs(number) < 1e20 else f"{'-' if number < 0 else ''}1e{math.floor(math.log10(abs(number)))}"


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise SpecError(f"a spec holds the text {text[:MAX_TEXT]!r}…; it has none of more than {MAX_TEXT} characters")
