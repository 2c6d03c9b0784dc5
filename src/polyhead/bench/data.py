"""A record as the page shows it: what was measured, and beside each row the figures that follow from its turns."""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping
from typing import Any

from polyhead.bench.records import HEADER, OURS, Outcome, Record, Row
from polyhead.bench.timer import Turns, quartiles
from polyhead.errors import SpecError
from polyhead.spec import AttentionSpec, Causal, Full, Grouped, LayerSpec, NoPosition, Rotary, Softmax
from polyhead.spec.attention import part_from_data

_MISSED = re.compile(r"not (?:run at|timed from) (\d+) keys")
"""How a note begins that says why a length was not timed."""


def to_page(record: Record) -> dict[str, Any]:
    """Return a record as its JSON has it, with its notes, and of each row what is ``derived`` from its turns.

    Args:
        record: What was measured.

    Returns:
        Plain data: medians and quartiles of the turns that count, ratios of ours to each peer, the growth with length
        and the line fitted to it, the lengths that were not timed, and the targets with the seconds that would meet
        them.
    """
    rows = [{**dataclasses.asdict(row), "derived": derived(row)} for row in record.rows]
    head = {**HEADER, **dataclasses.asdict(record), "ceilings_text": str(record.ceilings), "notes": record.notes()}
    return {**head, "rows": rows}


def derived(row: Row) -> dict[str, Any]:
    """Return which choice a row is about, and the figures that follow from its turns."""
    return {
        "changes": _changes(row.spec),
        "contenders": {} if row.turns is None else _contenders(row.turns),
        "is_quiet": None if row.turns is None else row.turns.quiet,
        "growth": _growth(row),
        "missed": [{"length": int(found[1]), "why": note} for note in row.notes if (found := _MISSED.match(note))],
        "targets": [_target(row, target) for target in row.targets],
    }


def _changes(data: Mapping[str, Any]) -> str:
    """Return which choice a case is about: the one in which its spec, where that can be read, is no plain attention."""
    try:
        found = part_from_data({name: part for name, part in data.items() if name != "schema"})
    except SpecError:
        found = None
    spec = found.attention if isinstance(found, LayerSpec) else found
    if not isinstance(spec, AttentionSpec):
        return "nothing"
    is_plain = {
        "weighting": isinstance(spec.weighting, Softmax),
        "pattern": spec.pattern in (Full(), Causal()),
        "position": isinstance(spec.position, NoPosition | Rotary),
        "storage": isinstance(spec.storage, Grouped) and spec.storage.kv_heads == spec.storage.num_heads,
    }
    return next((choice for choice, plain in is_plain.items() if not plain), "nothing")


def _contenders(turns: Turns) -> dict[str, dict[str, Any]]:
    """Return each contender's seconds, and how many times its own ours takes: lower quartile, median, upper."""
    return {
        name: {
            "seconds": quartiles(turns.of(name)),
            "ratio": None if name == OURS else turns.ratios(OURS, name),
            "turns": len(turns.counted),
        }
        for name in turns.seconds
    }


def _growth(row: Row) -> dict[str, Any] | None:
    if row.sweep is None or row.exponent is None:
        return None
    medians = row.seconds_by_length
    constant = statistics.fmean(math.log(taken) - row.exponent * math.log(size) for size, taken in medians.items())
    return {
        "exponent": row.exponent,
        "points": [{"length": size, "seconds": quartiles(row.sweep.of(str(size)))} for size in medians],
        "fitted": [[size, math.exp(constant) * size**row.exponent] for size in (min(medians), max(medians))],
        "is_quiet": row.sweep.quiet,
    }


def _target(row: Row, target: Outcome) -> dict[str, Any]:
    """Return a target, whether it was met, and where it bounds ours by a peer's time, how many seconds that is."""
    is_timed = row.turns is not None and target.against in row.turns.seconds
    seconds = target.limit * row.turns.median(target.against) if is_timed and row.turns is not None else None
    return {
        **dataclasses.asdict(target),
        "title": row.titles.get(target.against, target.against),
        "met": target.met,
        "text": str(target),
        "seconds": seconds,
    }
