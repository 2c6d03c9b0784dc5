"""How a token's weights come about under a mechanism, step by step and in words: what the oracle goes through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from polyhead.compare import engine as engines
from polyhead.compare.comparison import AttentionComparison
from polyhead.compare.inputs import Array, Fitted
from polyhead.compare.matrices import kind_of
from polyhead.compare.words import shown_name, what_is
from polyhead.oracle.stages import Stage
from polyhead.oracle.tiled import Tile
from polyhead.oracle.trace import Trace
from polyhead.page import SCHEMA
from polyhead.spec import AttentionSpec, Full, Latent

MOST_LISTED = 2**14
"""Most numbers of all keys together that are listed."""

MOST_TILES = 64
"""Most tiles that are told one by one."""

VECTORS = {"query", "rotated query", "query features", "mixed", "output"}
"""Stages whose numbers are a vector's, and not one for each key."""

NUMBERS = {"sum", "lambda"}
"""Stages that are a single number."""


class _Told(NamedTuple):
    """What a token goes through, and where the words for it come from.

    Attributes:
        spec: The spec that ran.
        fitted: The same with its inputs.
        heads: The heads whose rows are told.
        traces: What each goes through.
        masked: Whether each key is hidden from the token in every head.
    """

    spec: AttentionSpec
    fitted: Fitted
    heads: list[int]
    traces: list[Trace]
    masked: list[bool]


def stages(comparison: AttentionComparison, name: str | int, token: str | int | None = None) -> dict[str, Any]:
    """Return the stages from a token's query to its output under a mechanism, as JSON-ready data.

    Each stage has an ``id``, a ``name`` to read, a sentence that says ``what`` it is, and ``rows`` with a ``label`` and
    ``values``; a row runs ``along`` the ``"keys"``, the ``"width"`` of a vector, or is a single ``"number"``.
    ``masked`` says which keys are hidden, once they are; a hidden score is None. Where a head was split there is a row
    for each piece; the last rows of ``"weights"`` and ``"output"`` are what `AttentionComparison.run` returns.

    Args:
        comparison: The comparison.
        name: The mechanism, or an added combination, as in `AttentionComparison.run`.
        token: The token. None: the input's own default.

    Returns:
        The data.

    Raises:
        UnknownNameError: If there is no such mechanism or token.
        PolyheadError: If this input cannot take the mechanism; the message says why.
    """
    known, position = comparison.known(name), comparison.position(token)
    told = _told(comparison, known, position)
    return {
        "schema": SCHEMA,
        "mechanism": known,
        "token": comparison.tokens[position],
        "position": position,
        "key_tokens": list(told.fitted.key_tokens),
        "kind": kind_of(told.spec),
        "spec_repr": repr(told.spec),
        "note": told.fitted.note,
        "stages": [*_latent_stage(told), *_all_stages(told)],
    }


def _told(comparison: AttentionComparison, name: str, position: int) -> _Told:
    fitted = comparison.result(name).fitted
    heads = list(range(fitted.spec.num_heads)) if comparison.is_single else [comparison.head]
    tile = comparison.settings.tile if comparison.view(name).changes == "computation" else None
    traces = [engines.trace(fitted, head, position, tile) for head in heads]
    seen = np.any([trace.stages[0].values[0] for trace in traces], axis=0)
    return _Told(fitted.spec, fitted, heads, traces, (~seen).tolist())


def _all_stages(told: _Told) -> Iterable[dict[str, Any]]:
    """Return the stages of all heads, those of one name together."""
    groups: dict[str, list[tuple[int, Stage]]] = {}
    for head, trace in zip(told.heads, told.traces, strict=True):
        weights = next(stage.values for stage in trace.stages if stage.name == "weights")
        for stage in trace.stages:
            if stage.name == "weights" or stage.values is not weights:  # one softmax's shares are the weights already
                groups.setdefault(stage.name, []).append((head, stage))
    for name in ("allowed", *_idle(told.spec)):
        groups.pop(name, None)
    has_tiles = bool(told.traces[0].tiles)
    is_masked = False
    for name, group in groups.items():
        if has_tiles and name in {"exponentials", "sum"}:
            continue
        if has_tiles and name == "weights":
            yield from _tile_stages(told)
        is_masked |= name in {"masked", "seen products"}
        yield _stage(told, name, group, is_masked)


def _idle(spec: AttentionSpec) -> list[str]:
    """Return the stages that change nothing with a spec."""
    idle = ["masked", "seen products"] if spec.pattern == Full() else []
    return [*idle, "scaled"] if spec.scale == 1.0 else idle


def _stage(told: _Told, name: str, group: list[tuple[int, Stage]], is_masked: bool) -> dict[str, Any]:
    rows = [row for head, stage in group for row in _rows(told, _label(told, head, stage, group), stage)]
    what = what_is(name, told.spec)
    if sum(stage.values.size for _, stage in group) > MOST_LISTED and group[0][1].values.ndim == 3:
        rows, what = [], f"{what} They are too many to list."
    if name == "weights" and len(group) > 1:
        mean = np.mean([stage.values[0] for _, stage in group], axis=0)
        rows.append({"label": "mean", "values": mean.tolist(), "along": "keys"})
    if name == "output":
        rows = _outputs(told)
    is_along_keys = any(row["along"] == "keys" for row in rows)
    return {
        "id": name,
        "name": shown_name(name),
        "what": what,
        "rows": rows,
        "masked": told.masked if is_masked and is_along_keys else None,
    }


def _outputs(told: _Told) -> list[dict[str, Any]]:
    outputs = [trace.output for trace in told.traces]
    if len(outputs) == 1:
        return [_row("", outputs[0], "width")]
    rows = [_row(f"head {head}", output, "width") for head, output in zip(told.heads, outputs, strict=True)]
    return [*rows, _row("side by side", np.concatenate(outputs), "width")]


def _label(told: _Told, head: int, stage: Stage, group: list[tuple[int, Stage]]) -> str:
    parts = [f"head {head}"] if len(told.heads) > 1 else []
    if any(other.map for _, other in group):
        parts.append(f"map {stage.map + 1}")
    return ", ".join(parts)


def _rows(told: _Told, label: str, stage: Stage) -> list[dict[str, Any]]:
    if stage.values.ndim == 3:
        names = (f"{label}: {token}" if label else token for token in told.fitted.key_tokens)
        return [_row(name, vector, "width") for name, vector in zip(names, stage.values[0], strict=True)]
    along = "width" if stage.name in VECTORS else "number" if stage.name in NUMBERS else "keys"
    return [_row(label, stage.values[0], along)]


def _row(label: str, values: Array, along: str) -> dict[str, Any]:
    numbers = [None if number == -np.inf else number for number in values.tolist()]
    return {"label": label, "values": numbers, "along": along}


def _latent_stage(told: _Told) -> Iterable[dict[str, Any]]:
    """Return the rows that a latent stores, which every head's keys and values unfold from."""
    if isinstance(told.spec.storage, Latent):
        yield _stage(told, "latent", [(0, Stage("latent", told.fitted.key))], is_masked=False)


def _tile_stages(told: _Told) -> Iterable[dict[str, Any]]:
    """Return what flash attention holds after each tile; of very many, after the first and the last ones."""
    tiles = told.traces[0].tiles
    for number, tile in enumerate(tiles, start=1):
        skipped = len(tiles) - MOST_TILES
        if skipped > 0 and MOST_TILES // 2 < number <= MOST_TILES // 2 + skipped:
            if number == MOST_TILES // 2 + 1:
                what = f"Tiles {number} to {number + skipped - 1} go the same way and are not listed."
                yield {"id": "tiles", "name": f"{skipped} more tiles", "what": what, "rows": [], "masked": None}
            continue
        yield _tile(told, number, tile)


def _tile(told: _Told, number: int, tile: Tile) -> dict[str, Any]:
    within: list[float | None] = [None] * len(told.fitted.key_tokens)
    within[tile.keys] = tile.exponentials[0].tolist()
    rows = [
        {"label": "e^(score − largest)", "values": within, "along": "keys"},
        _row("largest so far", tile.maximum[0], "number"),
        _row("sum so far", tile.total[0], "number"),
        _row("output so far", tile.output[0], "width"),
    ]
    tokens = told.fitted.key_tokens[tile.keys]
    shown = " ".join(tokens) if len(tokens) <= 4 else f"{tokens[0]} … {tokens[-1]}"
    return {
        "id": "tile",
        "name": f"tile {number}",
        "what": what_is("tile", told.spec, shown),
        "rows": rows,
        "masked": None if told.spec.pattern == Full() else told.masked,
    }
