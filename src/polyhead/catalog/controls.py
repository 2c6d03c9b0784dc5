"""The knobs of the fifteen as data: what each is called, what it may be, and how it enters the settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from polyhead.catalog.settings import Settings
from polyhead.errors import SpecError
from polyhead.spec import BigBird, Pattern, SlidingWindow
from polyhead.spec.choice import as_float, as_int, one_of
from polyhead.spec.combined import AnyOf
from polyhead.spec.links import RandomLinks
from polyhead.spec.pattern import Band, Global
from polyhead.spec.weighting import FEATURE_MAPS

SHARED_HEADS = ("mean", "first")
FORMS = ("clipped", "paper")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Control:
    """One knob, which stands in `Settings` or in a part of them.

    Attributes:
        name: Its name in flat settings.
        label: Its name to read.
        kind: What it takes: a whole number, a number, or one of some choices.
        mechanisms: The names of the mechanisms that it belongs to.
        help: What it does, in a sentence.
        read: Returns its value in settings, or None where they hold something that it cannot say.
        write: Returns settings with another value of it, or raises SpecError.
        minimum: The least value that makes sense to offer. None: it depends on the input, or it is a choice.
        maximum: The largest.
        step: The least change to offer. None: any, on a logarithmic scale.
        choices: What can be chosen, for a choice that does not depend on the input.
    """

    name: str
    label: str
    kind: Literal["int", "float", "choice"]
    mechanisms: tuple[str, ...]
    help: str
    read: Callable[[Settings], Any]
    write: Callable[[Settings, Any], Settings]
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()


def controls() -> tuple[Control, ...]:
    """Return every knob, in the order of the mechanisms."""
    return (*_HEADS, *_POSITION, _FEATURE_MAP, _WINDOW, *_BIGBIRD, _TILE, *_DIFFERENTIAL, _LATENT_RANK)


def settings_from(flat: Mapping[str, Any], default: Settings) -> Settings:
    """Put flat settings, such as ``{"window": 2, "rope_theta": 500000.0}``, onto others.

    Args:
        flat: A value for each knob to turn, by its name in `controls`; None leaves it.
        default: The settings where a knob is not turned.

    Returns:
        The settings.

    Raises:
        SpecError: If there is no such knob, or it cannot be turned so far.
    """
    known = {control.name: control for control in controls()}
    if unknown := sorted(set(flat) - set(known)):
        raise SpecError(f"there is no setting {unknown[0]!r}; there are {', '.join(known)}")
    settings = default
    for name, control in known.items():
        if flat.get(name) is not None:
            settings = control.write(settings, flat[name])
    return settings


def flat_from(settings: Settings) -> dict[str, Any]:
    """Return settings as `settings_from` takes them; None where a knob cannot say what they hold, or it is implied."""
    return {control.name: control.read(settings) for control in controls()}


def bigbird_parts(pattern: Pattern) -> dict[str, Any] | None:
    """Return the arguments with which `BigBird` makes a pattern; None where it does not make it."""
    found: dict[str, Any] = {"num_global": 0, "num_random": 0}
    for part in pattern.parts if isinstance(pattern, AnyOf) else (pattern,):
        if isinstance(part, Band):
            found["radius"] = part.left
        elif isinstance(part, Global):
            found["num_global"] = part.first
        elif isinstance(part, RandomLinks):
            found |= {"num_random": part.per_query, "seed": part.seed, "span": part.span}
    is_whole = found.get("radius") is not None and BigBird(**found) == pattern
    return found if is_whole else None


def _whole(field: str, at_least: int) -> Callable[[Settings, Any], Settings]:
    def write(settings: Settings, value: Any) -> Settings:
        turned: dict[str, Any] = {field: as_int(field, value, at_least=at_least)}
        return dataclasses.replace(settings, **turned)

    return write


def _number(field: str) -> Callable[[Settings, Any], Settings]:
    def write(settings: Settings, value: Any) -> Settings:
        turned: dict[str, Any] = {field: as_float(field, value)}
        return dataclasses.replace(settings, **turned)

    return write


def _word(field: str, allowed: tuple[str, ...]) -> Callable[[Settings, Any], Settings]:
    def write(settings: Settings, value: Any) -> Settings:
        one_of(field, value, allowed)
        return dataclasses.replace(settings, **{field: value})

    return write


def _rotary(field: str) -> Callable[[Settings, Any], Settings]:
    def write(settings: Settings, value: Any) -> Settings:
        return dataclasses.replace(settings, rotary=dataclasses.replace(settings.rotary, **{field: value}))

    return write


def _bigbird(part: str) -> Callable[[Settings, Any], Settings]:
    def write(settings: Settings, value: Any) -> Settings:
        parts = bigbird_parts(settings.bigbird) or {}
        parts[part] = as_int(f"bigbird_{part.removeprefix('num_')}", value, at_least=0)
        return dataclasses.replace(settings, bigbird=BigBird(**parts))

    return write


def _of_bigbird(part: str) -> Callable[[Settings], int | None]:
    return lambda settings: (bigbird_parts(settings.bigbird) or {}).get(part)


def _window(settings: Settings) -> int | None:
    """Return how far back the window reaches; None where it is no plain window."""
    return settings.window.left if isinstance(settings.window, Band) else None


def _set_window(settings: Settings, value: Any) -> Settings:
    return dataclasses.replace(settings, window=SlidingWindow.symmetric(as_int("window", value, at_least=0)))


def _slope(settings: Settings) -> float | None:
    slopes = settings.alibi_slopes
    return slopes[0] if slopes is not None and len(set(slopes)) == 1 else None


def _set_slope(settings: Settings, value: Any) -> Settings:
    return dataclasses.replace(settings, alibi_slopes=(as_float("alibi_slope", value),))


_HEADS = (
    Control(
        name="num_groups",
        label="groups",
        kind="choice",
        mechanisms=("gqa",),
        help="How many key/value heads the heads share: 1 is multi-query, one for each head multi-head attention.",
        read=lambda settings: settings.num_groups,
        write=_whole("num_groups", 1),
    ),
    Control(
        name="shared_head",
        label="shared head",
        kind="choice",
        mechanisms=("mqa", "gqa"),
        help="Where a shared key/value head comes from: the mean of those that it replaces, or the first.",
        read=lambda settings: settings.shared_head,
        write=_word("shared_head", SHARED_HEADS),
        choices=SHARED_HEADS,
    ),
    Control(
        name="num_heads",
        label="heads",
        kind="choice",
        mechanisms=("mha", "mqa", "gqa"),
        help="How many heads a single head's width is split into.",
        read=lambda settings: settings.num_heads,
        write=_whole("num_heads", 1),
    ),
)

_POSITION = (
    Control(
        name="bias_slope",
        label="slope",
        kind="float",
        mechanisms=("relative-bias",),
        help="What the bias takes from a score for each token of distance; a model would learn a number per distance.",
        read=lambda settings: settings.bias_slope,
        write=_number("bias_slope"),
        minimum=0.0,
        maximum=4.0,
        step=0.1,
    ),
    Control(
        name="rope_theta",
        label="θ",
        kind="float",
        mechanisms=("rope",),
        help="The base: plane t turns by θ^(−2t/d) radians per token, so a larger one tells further tokens apart.",
        read=lambda settings: settings.rotary.theta,
        write=_rotary("theta"),
        minimum=2.0,
        maximum=10_000_000.0,
    ),
    Control(
        name="rope_pairs",
        label="pairs",
        kind="choice",
        mechanisms=("rope",),
        help="Which widths turn together: t with t + d/2 (half), or 2t with 2t + 1 (interleaved).",
        read=lambda settings: settings.rotary.pairs,
        write=_rotary("pairs"),
        choices=("half", "interleaved"),
    ),
    Control(
        name="rope_direction",
        label="direction",
        kind="choice",
        mechanisms=("rope",),
        help="Which way they turn: as in the paper, or reversed, as the textbook's example has it.",
        read=lambda settings: settings.rotary.direction,
        write=_rotary("direction"),
        choices=("paper", "reversed"),
    ),
    Control(
        name="alibi_slope",
        label="slope",
        kind="float",
        mechanisms=("alibi",),
        help="What is taken from a score for each token of distance, the same for every head once it is set.",
        read=_slope,
        write=_set_slope,
        minimum=0.0,
        maximum=4.0,
        step=0.1,
    ),
)

_FEATURE_MAP = Control(
    name="feature_map",
    label="φ",
    kind="choice",
    mechanisms=("linear",),
    help="What turns queries and keys into features, whose products replace the softmax.",
    read=lambda settings: settings.feature_map,
    write=_word("feature_map", FEATURE_MAPS),
    choices=FEATURE_MAPS,
)

_WINDOW = Control(
    name="window",
    label="window",
    kind="int",
    mechanisms=("sliding-window",),
    help="How many tokens it sees on either side of itself, where the base pattern lets it.",
    read=_window,
    write=_set_window,
    minimum=0,
    step=1,
)

_BIGBIRD = (
    Control(
        name="bigbird_radius",
        label="window",
        kind="int",
        mechanisms=("bigbird",),
        help="How many tokens it sees on either side of itself.",
        read=_of_bigbird("radius"),
        write=_bigbird("radius"),
        minimum=0,
        step=1,
    ),
    Control(
        name="bigbird_global",
        label="global tokens",
        kind="int",
        mechanisms=("bigbird",),
        help="How many first tokens see all and are seen by all.",
        read=_of_bigbird("num_global"),
        write=_bigbird("num_global"),
        minimum=0,
        step=1,
    ),
    Control(
        name="bigbird_random",
        label="random links",
        kind="int",
        mechanisms=("bigbird",),
        help="How many random keys each query sees besides.",
        read=_of_bigbird("num_random"),
        write=_bigbird("num_random"),
        minimum=0,
        step=1,
    ),
    Control(
        name="bigbird_seed",
        label="seed",
        kind="int",
        mechanisms=("bigbird",),
        help="Which random keys are drawn.",
        read=_of_bigbird("seed"),
        write=_bigbird("seed"),
        minimum=0,
        maximum=99,
        step=1,
    ),
)

_TILE = Control(
    name="tile",
    label="tile",
    kind="int",
    mechanisms=("flash",),
    help="How many keys are taken at a time; the result is the same for every size.",
    read=lambda settings: settings.tile,
    write=_whole("tile", 1),
    minimum=1,
    step=1,
)

_DIFFERENTIAL = (
    Control(
        name="lambda_init",
        label="λ",
        kind="float",
        mechanisms=("differential",),
        help="How much of the second map is taken from the first.",
        read=lambda settings: settings.lambda_init,
        write=_number("lambda_init"),
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    ),
    Control(
        name="differential_form",
        label="form",
        kind="choice",
        mechanisms=("differential",),
        help=(
            "The textbook sets negative weights to 0 and rescales each row to 1 (clipped); the paper keeps the "
            "difference and norms each head's output (paper)."
        ),
        read=lambda settings: settings.differential_form,
        write=_word("differential_form", FORMS),
        choices=FORMS,
    ),
)

_LATENT_RANK = Control(
    name="latent_rank",
    label="rank",
    kind="int",
    mechanisms=("mla",),
    help="How many numbers are kept for each token, from which its keys and values are unfolded.",
    read=lambda settings: settings.latent_rank,
    write=_whole("latent_rank", 1),
    minimum=1,
    step=1,
)
