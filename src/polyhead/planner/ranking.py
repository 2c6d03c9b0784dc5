"""What a change is worth: what it buys, against how many choices it changes, its quality, and what it takes to get."""

from __future__ import annotations

import dataclasses

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
        quality: The evidence that counts, for each choice; None where nothing was measured. Choices of which nothing
            is lost by definition, being the reference's or the trained model's own, are left out.
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
        return _way("training", (), _quality(variant, base, task, own=False), prefer, 1.0)
    anew = _way("retraining", (), _quality(variant, base, task, own=False), prefer, prefer.retraining)
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
    return _way("conversion" if how else "nothing", tuple(how), _quality(variant, base, task, own=True), prefer, effort)


def _recipe(option: Option, base: dict[str, str]) -> str | None:
    """Return how a model's own weights become those of an option, where somebody published how."""
    before = base[option[0]]
    fewer = {"gqa": ("mha",), "mqa": ("mha", "gqa"), "mla": ("mha", "gqa", "mqa")}
    return CONVERSIONS.get(option) if before in fewer.get(option[1], ()) else None


def _quality(variant: Variant, base: dict[str, str], task: Task, *, own: bool) -> dict[Option, Evidence | None]:
    found: dict[Option, Evidence | None] = {}
    for option in variant.kinds.items():
        evidence = found_for(option, task.domains_of(option[0]), converted=own and option[0] in variant.changed)
        if evidence:
            found[option] = evidence[0]
        elif option not in REFERENCE and base[option[0]] != option[1]:
            found[option] = None
    return found


def _way(
    needs: str, how: tuple[str, ...], quality: dict[Option, Evidence | None], prefer: Preferences, effort: float
) -> Way:
    losses = [None if one is None else one.loss for one in quality.values()]
    lost = sum(loss for loss in losses if loss is not None and loss >= CHANCE)
    lost_factor: float = min(prefer.most, prefer.half_percent ** (lost / HALF_PERCENT))
    factor = effort * lost_factor * prefer.not_measured ** losses.count(None)
    return Way(needs=needs, how=how, quality=quality, factor=factor)
