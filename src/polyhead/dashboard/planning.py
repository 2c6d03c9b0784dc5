"""Answers about which attention fits a model, a context and a device."""

from __future__ import annotations

from typing import Any

from polyhead.catalog import device, model
from polyhead.dashboard.bounds import computed
from polyhead.dashboard.requests import FitsRequest, PlanRequest
from polyhead.errors import SpecError, unknown_name
from polyhead.planner import plan as make_plan
from polyhead.planner.asked import OBJECTIVES, default_task
from polyhead.planner.curves import curves
from polyhead.planner.data import fits_data, to_data
from polyhead.planner.fits import what_fits

BLOCK = 64
"""Tokens in the blocks between which links are drawn at random."""

MAX_RAGGED = 4096
"""Tokens of a sequence at most whose links are counted token by token, since it is not made of whole blocks."""

MAX_DRAWN = 2**18
"""Tokens of a sequence at most where links are drawn at all."""


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
    if request.optimise is not None and request.optimise not in OBJECTIVES:
        raise unknown_name("objective", request.optimise, OBJECTIVES)
    unread = {"optimise", request.asked}
    asked = {name: value for name, value in _asked(request).items() if name not in unread}
    found = computed(lambda: what_fits(asked=request.asked, **asked))
    return fits_data(request.asked, found)


def _asked(request: PlanRequest) -> dict[str, Any]:
    """Return what the planner takes. Names are those of the catalogue: a path is never one."""
    found = model(request.model)
    task = request.task or default_task(found)
    draws = any(layer.attention.pattern.per_head for layer in found.layers)
    if task == "encode" or draws:  # all that is read at once may have BigBird's links
        _check_countable(found.max_seq_len if request.context is None else request.context)
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


def _check_countable(context: int | None) -> None:
    """Refuse a sequence in which counting pairs that are linked at random would take minutes."""
    if context is None:
        return
    if context > MAX_DRAWN:
        raise SpecError(f"context={context} is past {MAX_DRAWN:,}, up to which random links are counted; give less")
    if context > MAX_RAGGED and context % BLOCK:
        raise SpecError(
            f"context={context} is no multiple of {BLOCK}, the block between which links are drawn at random, and "
            f"token by token they are counted up to {MAX_RAGGED:,} here; give {context - context % BLOCK}"
        )
