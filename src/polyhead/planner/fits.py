"""The question turned round: the longest context, or the largest batch, that fits on a device."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from polyhead.catalog import Model
from polyhead.cost import Memory
from polyhead.errors import SpecError, unknown_name
from polyhead.planner.asked import most
from polyhead.planner.options import Variant
from polyhead.planner.plan import Planning, planning
from polyhead.planner.ranking import needs_extension
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
        is_trained: Whether the model's weights are there.
        trained_on: The longest sequence that these were trained on, where a longer one is named. None: none is.
    """

    variant: Variant
    largest: int
    memory: Memory | None
    is_bounded: bool = True
    refused: str | None = None
    is_trained: bool = True
    trained_on: int | None = None

    @property
    def note(self) -> str:
        """What is to be said besides."""
        if not self.largest:
            return self.refused or "its weights alone, or a single one, are too large"
        return "" if self.trained_on is None else f"trained on {self.trained_on:,} tokens"


def what_fits(model: Model | str | os.PathLike[str], asked: str = "context", **options: Any) -> tuple[Fit, ...]:
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
    load = dataclasses.replace(begun.load, context=ASKED["context"]) if asked == "context" else begun.load
    every = dataclasses.replace(begun, load=load).variants()  # with windows, at contexts that are longer
    own, *others = (_fit(begun, asked, variant) for variant in every if len(variant.changed) <= 1)
    return (own, *sorted(others, key=lambda fit: -fit.largest))


def _fit(begun: Planning, asked: str, variant: Variant) -> Fit:
    def at(number: int) -> Load:
        changes: dict[str, Any] = {asked: number}
        return dataclasses.replace(begun.load, **changes)

    def fits(number: int) -> bool:
        load = at(number)
        return cannot(variant.model, load) is None and memory_of(variant.model, load).total <= begun.device.memory

    try:
        largest = most(fits, 1, ASKED[asked])
    except SpecError as error:  # heads that cannot be split between so many devices
        return Fit(variant=variant, largest=0, memory=None, refused=str(error), is_trained=begun.is_trained)
    if not largest:
        refused = cannot(variant.model, at(1))
        return Fit(variant=variant, largest=0, memory=None, refused=refused, is_trained=begun.is_trained)
    longest = begun.model.max_seq_len
    is_past = begun.is_trained and needs_extension(variant, at(largest).context, longest)
    return Fit(
        variant=variant,
        largest=largest,
        memory=memory_of(variant.model, at(largest)),
        is_bounded=largest < ASKED[asked],
        is_trained=begun.is_trained,
        trained_on=longest if is_past else None,
    )
