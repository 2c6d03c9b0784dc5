"""A plan as plain data, for JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from polyhead.catalog.model import alike
from polyhead.cost import Seconds
from polyhead.planner.fits import Fit
from polyhead.planner.plan import Plan, Stack
from polyhead.planner.words import changes, nearest, sentences
from polyhead.spec import LayerSpec

SCHEMA = 1


def to_data(plan: Plan) -> dict[str, Any]:
    """Return all of a plan: what was asked, what came out, and why."""
    load = plan.load
    return {
        "schema": SCHEMA,
        "model": plan.model.name,
        "parameters": plan.model.parameters,
        "trained_on": plan.model.max_seq_len,
        "device": json.loads(plan.device.to_json()),
        "devices": load.devices,
        "task": load.task.name,
        "context": load.context,
        "batch": load.batch,
        "precision": dataclasses.asdict(load.precision),
        "optimise": plan.objective,
        "is_trained": plan.is_trained,
        "preferences": dataclasses.asdict(plan.prefer),
        "cache_bytes_per_token": plan.cache_bytes_per_token,
        "fits": plan.best is not None,
        "nearest": None if plan.best is not None else nearest(plan),
        "own": None if plan.own is None else stack_data(plan.own),
        "stacks": [stack_data(stack) for stack in plan.stacks],
        "dropped": [stack_data(stack) for stack in plan.dropped],
        "refused": dict(plan.refused),
        "notes": list(plan.notes),
        "sentences": list(sentences(plan)),
        "changes": list(changes(plan)),
    }


def stack_data(stack: Stack) -> dict[str, Any]:
    """Return a stack: its four choices, its specs, and its figures."""
    return {
        "name": stack.name,
        "kinds": stack.variant.kinds,
        "names": stack.variant.names,
        "changed": list(stack.variant.changed),
        "layers": _layers(stack.variant.model.layers),
        "encoder_layers": _layers(stack.variant.model.encoder_layers),
        "cross_layers": _layers(stack.variant.model.cross_layers),
        "parameters": stack.variant.model.parameters,
        "batch": stack.batch,
        "memory_bytes": {
            "weights": stack.memory.weights,
            "cache": dataclasses.asdict(stack.memory.cache),
            "temporary": stack.memory.temporary,
            "total": stack.memory.total,
        },
        "over_bytes": stack.over,
        "prompt_seconds": _seconds(stack.prompt),
        "token_seconds": _seconds(stack.token),
        "written": stack.written,
        "request_seconds": stack.request,
        "needs": stack.way.needs,
        "how": list(stack.way.how),
        "quality": {
            f"{choice}={kind}": None if evidence is None else {**dataclasses.asdict(evidence), "loss": evidence.loss}
            for (choice, kind), evidence in stack.way.quality.items()
        },
        "must_be_worth": stack.score / stack.objective,
        "objective": stack.objective,
        "score": stack.score,
    }


def fits_data(asked: str, fits: Sequence[Fit]) -> dict[str, Any]:
    """Return what fits: for each stack the largest number, and bytes with that."""
    rows = [
        {
            "name": fit.variant.name,
            "names": fit.variant.names,
            "changed": list(fit.variant.changed),
            "largest": fit.largest,
            "is_bounded": fit.is_bounded,
            "total_bytes": None if fit.memory is None else fit.memory.total,
            "cache_bytes": None if fit.memory is None else fit.memory.cache.ideal,
            "refused": fit.refused,
            "trained_on": fit.trained_on,
        }
        for fit in fits
    ]
    return {"schema": SCHEMA, "what_fits": asked, "stacks": rows}


def _layers(layers: Sequence[LayerSpec]) -> list[dict[str, Any]]:
    return [{"layer": layer.to_data(), "times": times} for layer, times in alike(layers).items()]


def _seconds(found: Seconds | None) -> dict[str, Any] | None:
    return None if found is None else {**dataclasses.asdict(found), "total": found.total, "bound": found.bound}
