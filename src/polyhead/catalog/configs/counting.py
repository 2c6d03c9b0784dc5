"""Parameters counted from widths, as the modules of transformers hold them."""

from __future__ import annotations

import dataclasses
import math

from polyhead.spec import LayerSpec


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A number of parameters.

    Attributes:
        total: All of them.
        idle: Those that a token does not go through: experts that it is not routed to.
    """

    total: int
    idle: int = 0

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(self.total + other.total, self.idle + other.idle)


def attention(layer: LayerSpec) -> int:
    """Return the number of an attention layer's parameters."""
    return sum(math.prod(shape) for shape in layer.parameter_shapes().values())


def linear(in_dim: int, out_dim: int, *, bias: bool) -> int:
    """Return the number of a linear map's parameters."""
    return out_dim * (in_dim + bias)


def gated(width: int, inner: int, *, bias: bool = False) -> int:
    """Return the number of parameters of a feed-forward layer with a gate: two maps in, one out."""
    return 2 * linear(width, inner, bias=bias) + linear(inner, width, bias=bias)


def plain(width: int, inner: int, *, bias: bool) -> int:
    """Return the number of parameters of a feed-forward layer without a gate: one map in, one out."""
    return linear(width, inner, bias=bias) + linear(inner, width, bias=bias)


def experts(count: int, used: int, each: int) -> Parameters:
    """Return the parameters of experts.

    Args:
        count: How many there are.
        used: How many a token is routed to.
        each: Parameters of one.

    Returns:
        Their number.
    """
    return Parameters(count * each, (count - used) * each)


def layer_norm(width: int) -> int:
    """Return the number of a layer norm's parameters: a weight and a bias for each width."""
    return 2 * width
