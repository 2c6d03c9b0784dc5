"""Answers about which attention fits a model, a context and a device."""

from __future__ import annotations

from typing import Any

from polyhead.catalog import Model, device, model
from polyhead.dashboard.bounds import computed
from polyhead.dashboard.requests import FitsRequest, PlanRequest
from polyhead.errors import SpecError
from polyhead.planner import plan as make_plan
from polyhead.planner.curves import curves
from polyhead.planner.data import fits_data, to_data
from polyhead.planner.fits import what_fits

MAX_LISTED = 8192
"""Tokens of a sequence whose links at random are listed one by one, where it is not made of whole blocks."""


def plan(request: PlanRequest) -> dict[str, Any]:
    """Answer with a plan, and with how the caches of its stacks grow.

    Args:
        request: The model, what it is to do, and on what.

    Returns:
        What `polyhead.planner.data.to_data` and `polyhead.planner.curves.curves` say.

    Raises:
        UnknownNameError: If the catalogue has no such model or device, or something else has no such name.
        SpecError: If the numbers do not fit together.
    """
    found = computed(lambda: make_plan(**_asked(request)))
    return to_data(found) | computed(lambda: curves(found))


def fits(request: FitsRequest) -> dict[str, Any]:
    """Answer how long a context, or how large a batch, fits; arguments and errors as those of `plan`.

    Of what is asked for nothing is read, nor of what is made least, so that the page can send what it planned.
    """
    unread = {"optimise", request.asked}
    asked = {name: value for name, value in _asked(request).items() if name not in unread}
    found = computed(lambda: what_fits(asked=request.asked, **asked))
    return fits_data(request.asked, found)


def _asked(request: PlanRequest) -> dict[str, Any]:
    """Return what the planner takes. Names are those of the catalogue: a path is never one."""
    found = model(request.model)
    _check_countable(found, request.context)
    return {
        "model": found,
        "context": request.context,
        "batch": request.batch,
        "device": None if request.device is None else device(request.device),
        "devices": request.devices,
        "task": request.task,
        "written": request.written,
        "precision": request.precision,
        "optimise": request.optimise,
        "from_scratch": request.from_scratch,
        "window": request.window,
    }


def _check_countable(found: Model, context: int | None) -> None:
    """Refuse a context whose pairs would be listed for minutes: random links follow a formula in whole blocks alone."""
    for pattern in {layer.attention.pattern for layer in found.layers}:
        if pattern.per_head and context is not None and context > MAX_LISTED and context % pattern.unit:
            near = context - context % pattern.unit
            raise SpecError(
                f"context={context} is no multiple of {pattern.unit}, the block for which {found.name} draws links; "
                f"give {near}"
            )
