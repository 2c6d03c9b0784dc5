"""Whole weight matrices and outputs of a comparison in one binary answer, laid out as a safetensors file.

Written by the few lines that its layout takes, so that it needs numpy alone: 8 bytes that say how long the header is,
the header in JSON, then each tensor's bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from polyhead.compare.comparison import AttentionComparison
from polyhead.compare.controls import controls_of
from polyhead.compare.differences import are_equal, why_equal
from polyhead.compare.inputs import Array
from polyhead.compare.table import View
from polyhead.errors import ShapeError, SpecError, UnsupportedError
from polyhead.page import SCHEMA
from polyhead.spec import AttentionSpec, Differential, Linear

BASELINE = "scaled-dot-product"


def matrices(comparison: AttentionComparison, names: Iterable[str | int] | None = None) -> bytes:
    """Return what every mechanism does for every token, for the head that a comparison shows.

    Tensors are float64, by the name of the mechanism: ``NAME/weights`` ``[q_len, kv_len]``, ``NAME/output``
    ``[q_len, width]``, ``NAME/distance`` ``[q_len]`` from the baseline's output; and in one byte each ``NAME/equal``
    ``[q_len]``, whether the output is the baseline's but for rounding. ``__metadata__`` has one entry, ``polyhead``:
    JSON that says what the input is, and for each mechanism its spec, its note and its knobs.

    Args:
        comparison: The comparison.
        names: Mechanisms and added combinations, by name or number. None: all.

    Returns:
        The bytes of a safetensors file.

    Raises:
        UnknownNameError: If there is nothing of a name.
    """
    wanted = set(comparison.names) if names is None else {comparison.known(name) for name in names}
    views: list[View] = []
    absent: dict[str, str] = {}
    for name in comparison.names:
        if name in wanted:
            try:
                views.append(comparison.view(name))
            except (SpecError, ShapeError, UnsupportedError) as error:
                absent[name] = str(error)
    baseline = comparison.view(BASELINE)
    tensors: dict[str, Array] = {}
    for view in views:
        tensors[f"{view.name}/weights"] = view.weights
        tensors[f"{view.name}/output"] = view.output
        tensors[f"{view.name}/distance"] = view.distances(baseline.output)
    for view in views:  # after all that is float64, so that nothing of that lies at an odd place
        tensors[f"{view.name}/equal"] = are_equal(baseline.output, view.output).astype(np.uint8)
    about = {
        **_about(comparison),
        "flash_error": comparison.flash_error() if any(view.name == "flash" for view in views) else None,
        "rows": [_row(comparison, view, baseline) for view in views],
        "absent": absent,
        "absent_controls": {name: controls_of(comparison, name) for name in absent},
    }
    return safetensors({"polyhead": json.dumps(about, ensure_ascii=False)}, tensors)


def safetensors(metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> bytes:
    """Return arrays in the layout of a safetensors file.

    Args:
        metadata: What ``__metadata__`` says.
        tensors: Arrays of float64 or uint8, by name, in the order in which their bytes follow each other.

    Returns:
        The bytes; the arrays' begin at a multiple of 8.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    parts: list[bytes] = []
    end = 0
    for name, array in tensors.items():
        kind = "U8" if array.dtype == np.uint8 else "F64"
        parts.append(np.ascontiguousarray(array, dtype="<u1" if kind == "U8" else "<f8").tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def kind_of(spec: AttentionSpec) -> str:
    """Return what a spec's weights are.

    Args:
        spec: The spec.

    Returns:
        ``"softmax"``; ``"effective"``, what is left of the difference of two maps; or ``"equivalent"``, the share that
        a key has in linear attention's sums, which never form it.
    """
    if isinstance(spec.weighting, Differential):
        return "effective"
    return "equivalent" if isinstance(spec.weighting, Linear) else "softmax"


def _about(comparison: AttentionComparison) -> dict[str, Any]:
    inputs = comparison.inputs
    return {
        "schema": SCHEMA,
        "title": comparison.title,
        "tokens": list(comparison.tokens),
        "token": comparison.position(),
        "head": comparison.head,
        "num_heads": len(inputs.query),
        "layer": inputs.layer,
        "num_layers": inputs.num_layers,
        "is_model": inputs.own is not None,
        "base_repr": repr(inputs.base),
    }


def _row(comparison: AttentionComparison, view: View, baseline: View) -> dict[str, Any]:
    is_equal = view.name != BASELINE and bool(are_equal(baseline.output, view.output).any())
    return {
        "number": view.number,
        "name": view.name,
        "title": view.title,
        "changes": view.changes,
        "spec": view.spec.to_data(),
        "spec_repr": repr(view.spec),
        "is_own": view.is_own,
        "note": view.note,
        "key_tokens": list(view.key_tokens),
        "kind": kind_of(view.spec),
        "equal_reason": why_equal(baseline, view) if is_equal else None,
        "controls": controls_of(comparison, view.name),
    }
