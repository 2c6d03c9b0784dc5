"""How much a case computes and reads, counted from the spec alone. No torch here."""

from __future__ import annotations

import dataclasses
import math

from polyhead.bench.case import Case
from polyhead.cost import attended
from polyhead.spec import Latent, Linear, retention

BACKWARD = 2.5
"""Backward over forward where there are pairs: five products of matrices against two."""

BACKWARD_OF_PROJECTION = 2.0
"""The same for a projection: the gradient of its input and of its weight."""


def useful_operations(case: Case) -> float:
    """Count the multiplications and additions that a case needs, two for each pair of numbers multiplied.

    For each allowed pair q·k in every map and one product with the value, 4·d where both are d wide; linear weighting
    has no pairs but a state, updated and read once for each token. A layer's projections and a latent's come on top.
    The backward pass of pairs counts 2.5 times the forward's, that of a projection twice.

    Args:
        case: The case.

    Returns:
        Floating-point operations.
    """
    spec = case.attention
    if case.sequences:
        return sum(useful_operations(dataclasses.replace(case, length=n, sequences=())) for n in case.sequences)
    keys = case.q_len if isinstance(spec.weighting, Linear) and case.decoding else case.length  # sums have the others
    attended_to = float(attended(spec, case.q_len, keys))
    projected = 2.0 * (case.q_len if case.decoding else case.length) * _projected_numbers(case)
    if case.training:
        return (1 + BACKWARD) * attended_to + (1 + BACKWARD_OF_PROJECTION) * projected
    return attended_to + projected


def bytes_read(case: Case, itemsize: int) -> float:
    """Count the bytes that decoding cannot but read: what is kept of each sequence, and a layer's parameters.

    Args:
        case: The case.
        itemsize: Bytes of a number.

    Returns:
        Bytes; 0 for a case that does not decode.
    """
    if not case.decoding:
        return 0.0
    kept = retention(case.attention)
    numbers = sum(map(kept.numbers, case.sequences or (case.length,)))
    if case.layer is not None:
        numbers += case.layer.parameters
    return float(numbers * itemsize)


def _projected_numbers(case: Case) -> int:
    """Count the numbers of the matrices that each token is multiplied with."""
    shapes = (case.layer or case.attention).parameter_shapes()
    latent = ("w_uk", "w_uv") if isinstance(case.attention.storage, Latent) else ()
    return sum(math.prod(shape) for name, shape in shapes.items() if name in latent or name.endswith("_proj.weight"))
