"""Slopes of the oracle, which has no gradient of its own: central differences, away from kinks.

The five-point stencil errs by ``step⁴/30`` times the fifth derivative, and by rounding, which is about ``10⁻¹⁵/step``
here. The step is the one at which the larger of the two is least, and the tolerance a few times that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

import polyhead as ph
from polyhead.oracle.attend import expand
from tests.inputs import INPUTS, Inputs

STEPS = {
    "smooth": (2e-4, 1e-10),
    # An RMS norm of a short row has a derivative for each power of one over its length.
    "normalised": (5e-5, 1e-9),
    # No stencil holds across a kink, of elu+1 or of clipping, so the step is so short that it stays on one side.
    "kinked": (1e-5, 5e-9),
}
"""Step and tolerance for each kind of function."""

MARGIN = 1e-4
"""How far a number must be from its kink: ten steps, of which the stencil goes two, by about a normal number each."""

SHORTEST = 0.1
"""How long a row must be before an RMS norm: what is shorter, the norm blows up, float32's rounding with it."""


def assert_slope(claimed: float, function: Callable[[float], float], spec: ph.AttentionSpec, *, what: str) -> None:
    """Assert that a function of one number has the slope claimed at 0.

    Args:
        claimed: The slope to check.
        function: The function.
        spec: What it computes, which decides the step.
        what: What the slope is of, for the message.
    """
    step, tolerance = STEPS[kind(spec)]
    near, far = (function(n * step) - function(-n * step) for n in (1, 2))
    slope = (8 * near - far) / (12 * step)
    error = abs(claimed - slope) / max(1.0, abs(slope))
    assert error <= tolerance, (
        f"gradient of {what}: the slope along a direction is {claimed}, the oracle's {slope}, "
        f"{error:.1e} apart and {tolerance:.0e} allowed"
    )


def kind(spec: ph.AttentionSpec) -> str:
    """Return which kind of function a spec makes of its inputs."""
    if isinstance(spec.weighting, ph.Differential):
        return "kinked" if spec.weighting.form == "clipped" else "normalised"
    return "kinked" if isinstance(spec.weighting, ph.Linear) and spec.weighting.feature_map != "softplus" else "smooth"


def is_well_posed(inputs: Inputs) -> bool:
    """Whether float32 and the stencil can tell right from wrong: no kink is near, and no norm is nearly of zero."""
    weighting = inputs.spec.weighting
    if isinstance(weighting, ph.Differential):
        return _is_off_the_clip(inputs) if weighting.form == "clipped" else _has_long_rows(inputs)
    return kind(inputs.spec) != "kinked" or _has_features_off_zero(inputs)


def _has_features_off_zero(inputs: Inputs) -> bool:
    params = {name: array for name, array in inputs.learned.items() if name not in INPUTS}
    sequences = ({"key": key, "value": None} for key in inputs.learned["key"])
    keys = (expand(sequence, inputs.spec, params)[0] for sequence in sequences)
    return all(np.abs(array).min(initial=1.0) > MARGIN for array in (inputs.learned["query"], *keys))


def _is_off_the_clip(inputs: Inputs) -> bool:
    """The paper's form with λ vectors of 0 has the weights of the clipped form before clipping."""
    unclipped = _weighing(inputs, form="paper")
    shapes = unclipped.spec.parameter_shapes()
    vectors = {name: np.zeros(shape) for name, shape in shapes.items() if name not in inputs.learned}
    _, weights = unclipped.changing(**vectors).oracle(return_weights=True)
    return bool(np.abs(weights[weights != 0]).min(initial=1.0) > MARGIN)


def _has_long_rows(inputs: Inputs) -> bool:
    """An ε that dwarfs the rows makes the norm a mere division by its root."""
    scaled = _weighing(inputs, norm_eps=1e12).oracle() / inputs.learned.get("sub_norm", 1.0)
    lengths = 1e6 / (1 - inputs.spec.weighting.initial_lambda) * np.sqrt((scaled**2).mean(axis=-1))
    return bool(lengths[lengths > 0].min(initial=1.0) > SHORTEST)


def _weighing(inputs: Inputs, **fields: object) -> Inputs:
    weighting = dataclasses.replace(inputs.spec.weighting, **fields)
    return dataclasses.replace(inputs, spec=dataclasses.replace(inputs.spec, weighting=weighting))
