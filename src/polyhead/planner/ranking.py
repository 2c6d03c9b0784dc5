"""What a change is worth: what it buys, against how many choices it changes, its quality, and what it takes to get."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from polyhead.catalog.model import alike
from polyhead.errors import SpecError
from polyhead.planner.evidence import (
    AS_IT_IS,
    CONVERSIONS,
    EXTENSION,
    REFERENCE,
    Evidence,
    Option,
    found_for,
)
from polyhead.planner.options import Variant
from polyhead.planner.tasks import Task
from polyhead.spec.choice import as_float

HALF_PERCENT = 0.005

CHANCE = 0.0025
"""A loss below this part of the reference's figure is not told from chance, and does not count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preferences:
    """By how much a change must better what is wanted, to be worth it; each is a factor, and factors multiply.

    Attributes:
        each_choice: For each of the four choices that it changes: counts are not more exact than this.
        half_percent: For each half per cent of quality that was measured as lost.
        most: For what is lost in all, at most.
        not_measured: For each choice whose quality nobody has measured.
        conversion: For trained weights that are converted by a published recipe and trained a little further.
        retraining: For training anew.
    """

    each_choice: float = 1.1
    half_percent: float = 2.0
    most: float = 32.0
    not_measured: float = 16.0
    conversion: float = 2.0
    retraining: float = 8.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if as_float(field.name, getattr(self, field.name)) < 1.0:
                raise SpecError(
                    f"{field.name}={getattr(self, field.name)!r} is below 1, and would prefer what costs more"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """A way to have a variant of a trained model, or of one that is to be trained.

    Attributes:
        needs: ``"nothing"``, ``"conversion"``, ``"retraining"``, or ``"training"`` where nothing is trained yet.
        how: What that is, where a source says it.
        quality: The evidence that counts, for each choice; None where nothing was measured. Left out are choices that
            are the reference's or the trained model's own, but for those of which the task's own domain tells.
        factor: What it must be worth, by some `Preferences`.
    """

    needs: str
    how: tuple[str, ...]
    quality: dict[Option, Evidence | None]
    factor: float


def best_way(variant: Variant, base: dict[str, str], task: Task, prefer: Preferences, *, extends: bool | None) -> Way:
    """Return the way to a variant that need be worth least.

    Args:
        variant: The variant.
        base: The kinds of the four choices of the model that it is made of.
        task: What it is for.
        prefer: What is preferred.
        extends: Whether the trained model would have to read longer sequences than it was trained on. None: nothing
            is trained yet.

    Returns:
        The way.
    """
    if extends is None:
        return _way("training", (), _Quality.of(variant, base, task, is_trained=False), prefer, 1.0)
    anew = _way("retraining", (), _Quality.of(variant, base, task, is_trained=True), prefer, prefer.retraining)
    converted = _converted(variant, base, task, prefer, extends=extends)
    return anew if converted is None or anew.factor < converted.factor else converted


def needs_extension(variant: Variant, context: int, trained_on: int | None) -> bool:
    """Whether queries would meet keys further away than any in training, and position does not bear that by itself."""
    if trained_on is None or context <= trained_on or variant.kinds["position"] not in {"rope", "none"}:
        return False
    return any(layer.attention.pattern.reach.size() > trained_on for layer in alike(variant.model.layers))


def _converted(variant: Variant, base: dict[str, str], task: Task, prefer: Preferences, *, extends: bool) -> Way | None:
    """Return the way that starts from trained weights, or None where nobody published one."""
    options = [(choice, variant.kinds[choice]) for choice in variant.changed]
    recipes = [_recipe(option, base) for option in options if option not in AS_IT_IS]
    if None in recipes or (extends and variant.kinds["position"] == "none"):
        return None
    how = [recipe for recipe in recipes if recipe is not None] + ([EXTENSION] if extends else [])
    effort = prefer.conversion if how else 1.0
    quality = _Quality.of(variant, base, task, is_trained=True, converted=True)
    return _way("conversion" if how else "nothing", tuple(how), quality, prefer, effort)


def _recipe(option: Option, base: dict[str, str]) -> str | None:
    """Return how a model's own weights become those of an option, where somebody published how."""
    before = base[option[0]]
    fewer = {"gqa": ("mha",), "mqa": ("mha", "gqa"), "mla": ("mha", "gqa", "mqa")}
    return CONVERSIONS.get(option) if before in fewer.get(option[1], ()) else None


class _Quality(NamedTuple):
    """What was published of a stack: the evidence that counts, and what is lost by each; None where nobody measured."""

    evidence: dict[Option, Evidence | None]
    losses: tuple[float | None, ...]

    @classmethod
    def of(
        cls, variant: Variant, base: dict[str, str], task: Task, *, is_trained: bool, converted: bool = False
    ) -> _Quality:
        """Look evidence up; of a trained model its own choices count only where the task's own domain tells of them."""
        evidence: dict[Option, Evidence | None] = {}
        losses: list[float | None] = []
        for option in variant.kinds.items():
            choice, kind = option
            is_own = is_trained and base[choice] == kind
            if is_own and choice not in task.strict:
                continue
            found = found_for(option, task.domains_of(choice), converted=converted and not is_own)
            if found:
                before = found_for((choice, base[choice]), task.domains_of(choice)) if is_trained and not is_own else ()
                evidence[option] = found[0]
                losses.append(_more(found[0].loss, before[0].loss if before else None))
            elif option not in REFERENCE and not is_own:
                evidence[option] = None
                losses.append(None)
        return cls(evidence, tuple(losses))


def _more(loss: float | None, before: float | None) -> float | None:
    """Return what is lost beyond what the choice before had lost."""
    return loss if loss is None or before is None else max(0.0, loss - before)


def _way(needs: str, how: tuple[str, ...], quality: _Quality, prefer: Preferences, effort: float) -> Way:
    lost = sum(loss for loss in quality.losses if loss is not None and loss >= CHANCE)
    doublings = min(lost / HALF_PERCENT * math.log(prefer.half_percent), math.log(prefer.most))
    factor = effort * math.exp(doublings) * prefer.not_measured ** quality.losses.count(None)
    return Way(needs=needs, how=how, quality=quality.evidence, factor=factor)
