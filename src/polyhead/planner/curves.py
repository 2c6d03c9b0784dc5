"""How a plan's caches grow with the length: a line for each stack that a picture shows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from polyhead.planner.plan import Plan, Stack
from polyhead.planner.plot import drawn
from polyhead.planner.tasks import memory_of

SHORTEST = 1024
"""The length from which a cache is followed, where no shorter one is asked."""

WITHOUT_CACHE = {"encode", "train"}
"""Tasks that keep none."""


def curves(plan: Plan) -> dict[str, Any]:
    """Return which of a plan's stacks are shown, how their caches grow, and what there is for them, as JSON-ready data.

    Args:
        plan: The plan.

    Returns:
        ``drawn``, the names of the stacks that a picture shows; ``ranked``, the names of those that fit, best first, of
        those that differ in position alone the first; ``curves``, for each stack that is drawn its ``name``,
        ``lengths`` in tokens of a sequence and ``bytes`` on each device for the batch that was asked, what must be kept
        (none where a task keeps no cache); ``capacity``, the bytes of each device; and ``room``, what the weights and
        the largest tensor of the model's own stack leave of that, or None where it has no stack that can do the task.
    """
    shown = drawn(plan)
    stacks = [] if plan.load.task.name in WITHOUT_CACHE else shown
    lengths = lengths_of(plan)
    return {
        "drawn": [stack.name for stack in shown],
        "ranked": [stack.name for stack in plan.ranked(len(plan.stacks))],
        "curves": [
            {"name": stack.name, "lengths": lengths, "bytes": [_kept(plan, stack, length) for length in lengths]}
            for stack in stacks
        ],
        "capacity": plan.device.memory,
        "room": None if plan.own is None else _room(plan, plan.own),
    }


def lengths_of(plan: Plan) -> list[int]:
    """Return powers of two to past what was asked and what the model was made for, and these two themselves."""
    named = {plan.load.context, plan.model.max_seq_len or plan.load.context}
    first = math.floor(math.log2(min(SHORTEST, *named)))
    last = math.ceil(math.log2(max(named))) + 1
    return sorted({2**power for power in range(first, last + 1)} | named)


def _kept(plan: Plan, stack: Stack, length: int) -> int:
    return memory_of(stack.variant.model, dataclasses.replace(plan.load, context=length)).cache.ideal


def _room(plan: Plan, own: Stack) -> int:
    memory = memory_of(own.variant.model, plan.load)
    return plan.device.memory - memory.weights - memory.temporary
