"""A plan as a picture: what each stack takes of a device, beside how long it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polyhead.errors import UnsupportedError, require_extra
from polyhead.files import check_plot, write_plot
from polyhead.planner.plan import Plan, Stack

MOST_STACKS = 12
"""Stacks that are drawn: the model's own, those ranked first, and those with one choice changed but for position."""

PARTS = {"weights": "#8c8c8c", "cache": "#0072b2", "the rest": "#d9d9d9"}
TIMES = ("#a3195b", "#e69f00")
GIB = 2**30


def drawn(plan: Plan) -> list[Stack]:
    """Return the stacks that a picture shows, the model's own first."""
    every = (*plan.stacks, *plan.dropped)
    single = [stack for stack in every if len(stack.variant.changed) == 1 and "position" not in stack.variant.changed]
    own = [] if plan.own is None else [plan.own]
    found = [*own, *plan.ranked(4), *single, *plan.dropped]
    return list({id(stack): stack for stack in found}.values())[:MOST_STACKS]


def draw(plan: Plan, path: Path | None = None) -> Any:
    """Draw memory against the device's, and seconds where they are known.

    Args:
        plan: The plan.
        path: Where to write it, ``.png`` or ``.svg``. None: nowhere.

    Returns:
        The matplotlib ``Figure``.

    Raises:
        MissingExtraError: If matplotlib is not installed.
        UnsupportedError: If the file's ending is another, or no stack can do the task.
    """
    check_plot(path)
    stacks = drawn(plan)
    if not stacks:
        raise UnsupportedError("there is nothing to draw: no attention can do this task")
    is_timed = any(stack.request is not None for stack in stacks)
    figure = require_extra("matplotlib.figure", "plot", "a plot").Figure(
        figsize=(13.0 if is_timed else 9.0, 1.8 + 0.36 * len(stacks)), layout="constrained"
    )
    left, *right = figure.subplots(1, 2 if is_timed else 1, squeeze=False, sharey=True)[0]
    several = "" if plan.load.devices == 1 else f"{plan.load.devices} × "
    figure.suptitle(
        f"{plan.model.title}, {plan.load.context:,} tokens, on {several}{plan.device.title}, {plan.load.precision}"
    )
    _memory(left, stacks, plan)
    for axes in right:
        _times(axes, stacks, {"train": "a step", "encode": "one pass"}.get(plan.load.task.name, "the prompt"))
    if path is not None:
        write_plot(figure, path)
    return figure


def _memory(axes: Any, stacks: list[Stack], plan: Plan) -> None:
    memories = [stack.memory for stack in stacks]
    sizes = {
        "weights": [memory.weights / GIB for memory in memories],
        "cache": [memory.cache.ideal / GIB for memory in memories],
        "the rest": [memory.temporary / GIB for memory in memories],
    }
    _bars(axes, sizes, PARTS)
    axes.axvline(plan.device.memory / GIB, color="#d55e00", linestyle="--", linewidth=1.5, label="the device has")
    axes.set_yticks(range(len(stacks)), [_label(stack, plan) for stack in stacks], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("GiB on each device")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)


def _label(stack: Stack, plan: Plan) -> str:
    mark = "" if stack is not plan.own else "as it is: " if plan.is_trained else "the reference: "
    return f"{mark}{stack.name}{', too large' if stack.over else ''}"


def _times(axes: Any, stacks: list[Stack], at_once: str) -> None:
    seconds = {
        at_once: [0.0 if stack.prompt is None else stack.prompt.total for stack in stacks],
        "tokens": [0.0 if stack.token is None else stack.written * stack.token.total for stack in stacks],
    }
    colours = dict(zip(seconds, TIMES, strict=True))
    _bars(axes, {name: values for name, values in seconds.items() if any(values)}, colours)
    axes.set_xlabel("seconds")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=8, frameon=False)


def _bars(axes: Any, parts: dict[str, list[float]], colours: dict[str, str]) -> None:
    """Draw each part beside the one before it."""
    begins = [0.0] * max(map(len, parts.values()), default=0)
    for name, values in parts.items():
        axes.barh(range(len(values)), values, left=begins, color=colours[name], label=name)
        begins = [begin + value for begin, value in zip(begins, values, strict=True)]
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
