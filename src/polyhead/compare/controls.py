"""A mechanism's knobs for one input: where they stand, and how far they turn."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from polyhead.catalog.controls import Control, controls
from polyhead.compare.comparison import AttentionComparison
from polyhead.errors import PolyheadError
from polyhead.spec import Alibi, AttentionSpec, Latent, Rotary
from polyhead.spec.choice import divisors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Offer:
    """Where a knob stands, and how far it turns.

    Attributes:
        value: Where it stands.
        minimum: The least to offer. None for a choice.
        maximum: The largest. None for a choice.
        choices: What can be chosen, for a choice.
    """

    value: Any
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()


def controls_of(comparison: AttentionComparison, name: str) -> list[dict[str, Any]]:
    """Return the knobs of a mechanism that do something to a comparison's input, as JSON-ready data.

    Args:
        comparison: The comparison.
        name: The mechanism's name; a combination of one's own has no knobs.

    Returns:
        For each knob its name, label, kind, help, value, and its range or its choices. What would change nothing is
        left out, such as RoPE's base where a model has RoPE of its own, and what stands where no knob can say.
    """
    found = []
    for control in controls():
        if name in control.mechanisms:
            offer = _OFFERS[control.name](comparison, control)
            if offer is not None and offer.value is not None:
                found.append(_data(control, offer))
    return found


def _data(control: Control, offer: Offer) -> dict[str, Any]:
    minimum, maximum = offer.minimum, offer.maximum
    if minimum is not None and maximum is not None:  # a value set in Python may lie outside of what is offered
        minimum, maximum = min(minimum, offer.value), max(maximum, offer.value)
    return {
        "name": control.name,
        "label": control.label,
        "value": offer.value,
        "kind": control.kind,
        "min": minimum,
        "max": maximum,
        "step": control.step,
        "choices": list(offer.choices) or None,
        "help": control.help,
    }


def _plain(comparison: AttentionComparison, control: Control) -> Offer:
    """Offer what does not depend on the input."""
    value = control.read(comparison.settings)
    return Offer(value=value, minimum=control.minimum, maximum=control.maximum, choices=control.choices)


def _up_to(largest: Callable[[AttentionComparison], int]) -> Callable[[AttentionComparison, Control], Offer]:
    def offer(comparison: AttentionComparison, control: Control) -> Offer:
        value = control.read(comparison.settings)
        return Offer(value=value, minimum=control.minimum, maximum=largest(comparison))

    return offer


def _length(comparison: AttentionComparison) -> int:
    return len(comparison.tokens)


def _furthest(comparison: AttentionComparison) -> int:
    return len(comparison.tokens) - 1


def _num_heads(comparison: AttentionComparison, control: Control) -> Offer | None:
    """Offer what divides the width, where there is one head to split."""
    if not comparison.is_single:
        return None
    base = comparison.inputs.base
    choices = divisors(math.gcd(base.qk_head_dim, base.v_head_dim))
    return Offer(value=comparison.settings.num_heads, choices=tuple(choices))


def _kv_heads(comparison: AttentionComparison) -> int:
    """Return how many key/value heads there are to share, after a single head is split."""
    return comparison.settings.num_heads if comparison.is_single else comparison.inputs.base.num_kv_heads


def _num_groups(comparison: AttentionComparison, control: Control) -> Offer:
    spec = _ran(comparison, "gqa")
    value = comparison.settings.num_groups if spec is None else spec.num_kv_heads
    return Offer(value=value, choices=tuple(divisors(_kv_heads(comparison))))


def _shared_head(comparison: AttentionComparison, control: Control) -> Offer | None:
    """Offer it where there is more than one head to share."""
    return _plain(comparison, control) if _kv_heads(comparison) > 1 else None


def _rope(comparison: AttentionComparison, control: Control) -> Offer | None:
    """Offer it where the base has no RoPE, which would be kept."""
    return None if isinstance(comparison.inputs.base.position, Rotary) else _plain(comparison, control)


def _alibi_slope(comparison: AttentionComparison, control: Control) -> Offer:
    """Offer the slope that is set, or the one that the head shown has by the paper."""
    offer = _plain(comparison, control)
    spec = _ran(comparison, "alibi")
    if spec is None or not isinstance(spec.position, Alibi):
        return offer
    return dataclasses.replace(offer, value=spec.position.head_slopes(spec.num_heads)[comparison.head])


def _latent_rank(comparison: AttentionComparison, control: Control) -> Offer:
    """Offer up to the rank that keys and values can have together."""
    spec, inputs = _ran(comparison, "mla"), comparison.inputs
    value = spec.storage.kv_lora_rank if spec and isinstance(spec.storage, Latent) else comparison.settings.latent_rank
    width = len(inputs.key) * (inputs.key.shape[-1] + inputs.value.shape[-1])
    return Offer(value=value, minimum=1, maximum=min(inputs.key.shape[1], width))


def _ran(comparison: AttentionComparison, name: str) -> AttentionSpec | None:
    """Return the spec that a mechanism ran with, or None where this input cannot take it."""
    try:
        return comparison.result(name).fitted.spec
    except PolyheadError:
        return None


_OFFERS: dict[str, Callable[[AttentionComparison, Control], Offer | None]] = {
    "num_heads": _num_heads,
    "num_groups": _num_groups,
    "shared_head": _shared_head,
    "bias_slope": _plain,
    "rope_theta": _rope,
    "rope_pairs": _rope,
    "rope_direction": _rope,
    "alibi_slope": _alibi_slope,
    "feature_map": _plain,
    "window": _up_to(_furthest),
    "bigbird_radius": _up_to(_furthest),
    "bigbird_global": _up_to(_length),
    "bigbird_random": _up_to(_length),
    "bigbird_seed": _plain,
    "tile": _up_to(_length),
    "lambda_init": _plain,
    "differential_form": _plain,
    "latent_rank": _latent_rank,
}
