"""A plan in a notebook: its picture and table, and the page on which its stacks are told in full."""

from __future__ import annotations

from typing import Any

from polyhead.page import Answer
from polyhead.page.notebook import NUMBER, bundle, picture, table
from polyhead.planner.curves import curves
from polyhead.planner.data import to_data
from polyhead.planner.plan import Plan, Stack
from polyhead.planner.plot import GIB, draw, drawn
from polyhead.planner.words import sentences

HEADINGS = ("stack", "weights", "cache", "in all", "over", "prompt", "a token", "must be worth")


def of_plan(plan: Plan) -> dict[str, str]:
    """Return a plan's forms for a notebook, by media type."""
    alt = "what each stack takes of the device's memory, and how long it takes"
    caption = next(iter(sentences(plan)), "")
    still = picture(lambda: draw(plan), alt) + table(HEADINGS, map(_row, drawn(plan)), caption, cell=NUMBER)
    asked = asked_of(plan)
    answer = Answer(path="plan", body=asked, content=to_data(plan) | curves(plan))
    return bundle(str(plan), still, {"screen": "plan", "plan": asked}, [answer])


def asked_of(plan: Plan) -> dict[str, Any]:
    """Return what was asked, as the page asks it."""
    load = plan.load
    written = {} if load.asked is None else {"written": load.asked}
    return {
        "model": plan.model.name,
        "context": load.context,
        "batch": load.batch,
        "device": plan.device.name,
        "devices": load.devices,
        "task": load.task.name,
        "precision": str(load.precision),
        "optimise": plan.objective,
        "from_scratch": not plan.is_trained,
        **written,
    }


def _row(stack: Stack) -> tuple[str, ...]:
    memory = stack.memory
    sizes = (memory.weights, memory.cache.ideal, memory.total)
    return (
        stack.name,
        *(f"{size / GIB:.2f} GiB" for size in sizes),
        f"{stack.over / GIB:.2f} GiB" if stack.over else "",
        "" if stack.prompt is None else f"{stack.prompt.total:.3g} s",
        "" if stack.token is None else f"{1e3 * stack.token.total:.3g} ms",
        f"{stack.score / stack.objective:.3g} ×",
    )
