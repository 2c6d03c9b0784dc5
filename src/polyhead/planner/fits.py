"""The question turned round: the longest context, or the largest batch, that fits on a device."""

from __future__ import annotations

import dataclasses
from typing import Any

from polyhead.catalog import Model
from polyhead.cost import Memory
from polyhead.errors import SpecError, unknown_name
from polyhead.planner.options import Variant
from polyhead.planner.plan import Planning, most, planning
from polyhead.planner.tasks import Load, cannot, memory_of

ASKED = {"context": 2**30, "batch": 2**20}
"""What can be asked for, and the largest number that is looked at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How much fits with a stack.

    Attributes:
        variant: The model, and which of its choices are changed.
        largest: The longest context or largest batch; 0 where nothing fits.
        memory: Bytes on each device with that much; None where nothing fits.
        is_bounded: Whether more does not fit; else it is the most that was looked at.
        refused: Why it cannot do the task, or None.
    """

    variant: Variant
    largest: int
    memory: Memory | None
    is_bounded: bool = True
    refused: str | None = None


def what_fits(model: Model | str, asked: str = "context", **options: Any) -> tuple[Fit, ...]:
    """Return how much fits with each stack: the model's own, then those with one choice changed, the most first.

    ::

        what_fits("llama-3-8b", device="rtx-4090")[0].largest

    Args:
        model: As of `plan`.
        asked: ``"context"`` or ``"batch"``.
        **options: As of `plan`; of the one that is asked for nothing need be said.

    Returns:
        The answers.

    Raises:
        UnknownNameError: If something else is asked, or a name is none.
        SpecError: As of `plan`.
    """
    if asked not in ASKED:
        raise unknown_name("quantity", asked, list(ASKED))
    begun = planning(model, **{"optimise": "memory", **options, asked: 1})
    own, *others = (_fit(begun, asked, variant) for variant in begun.variants() if len(variant.changed) <= 1)
    return (own, *sorted(others, key=lambda fit: -fit.largest))


def _fit(begun: Planning, asked: str, variant: Variant) -> Fit:
    def at(number: int) -> Load:
        changes: dict[str, Any] = {asked: number}
        return dataclasses.replace(begun.load, **changes)

    def fits(number: int) -> bool:
        load = at(number)
        if cannot(variant.model, load) is not None:
            return False
        try:
            return memory_of(variant.model, load).total <= begun.device.memory
        except SpecError:
            return False

    largest = most(fits, 1, ASKED[asked])
    if not largest:
        return Fit(variant=variant, largest=0, memory=None, refused=cannot(variant.model, at(1)))
    memory = memory_of(variant.model, at(largest))
    return Fit(variant=variant, largest=largest, memory=memory, is_bounded=largest < ASKED[asked])
