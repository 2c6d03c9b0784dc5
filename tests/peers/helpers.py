"""What the tests against other people's code share: how to compare, and how to build and read a peer's module.

A peer is compared on its outputs and on its gradients, in all its inputs and weights, and only in the rows of
real tokens: in a row that may see no key transformers' eager attention averages the values, and ours gives zeros.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from tests.tolerances import assert_close

M = TypeVar("M", bound=nn.Module)

PADDED = pytest.mark.parametrize("padded", [{}, {"left": 3}, {"right": 2}], ids=["whole", "left", "right"])


def assert_same_layer(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], wrt: Sequence[Tensor], *, rows: Tensor | None = None
) -> None:
    """Assert that outputs ``[batch, len, width]``, their gradients and weights ``[batch, heads, len, kv_len]`` agree.

    Args:
        ours: Output and weights.
        theirs: The peer's.
        wrt: What both outputs are differentiated with respect to.
        rows: Booleans ``[batch, len]``, True is compared. None: all.
    """
    assert_same_function(ours[0], theirs[0], wrt, rows=rows)
    by_row = (weights.transpose(1, 2)[... if rows is None else rows] for weights in (ours[1], theirs[1]))
    assert_close(*by_row, theirs[1].dtype, what="weights")


def assert_same_function(ours: Tensor, theirs: Tensor, wrt: Sequence[Tensor], *, rows: Tensor | None = None) -> None:
    """Assert that two outputs ``[batch, len, ...]`` agree, and their gradients, in the rows ``[batch, len]`` given."""
    rows = torch.ones(theirs.shape[:2], dtype=torch.bool) if rows is None else rows
    assert rows.any()
    assert_close(ours[rows], theirs[rows], theirs.dtype)
    kept = rows.view(*rows.shape, *(1,) * (theirs.dim() - 2))
    cotangent = normal(*theirs.shape, dtype=theirs.dtype, seed=99) * kept
    gradients = (torch.autograd.grad(output, wrt, cotangent) for output in (ours, theirs))
    for index, pair in enumerate(zip(*gradients, strict=True)):
        assert_close(*pair, theirs.dtype, what=f"gradient {index}")


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, requires_grad: bool = False) -> Tensor:
    """Return the same normal numbers at every call."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype).requires_grad_(requires_grad)


def filled(module: M, dtype: torch.dtype = torch.float32) -> M:
    """Give a module weights that are no special case: norms that are not 1, biases and sinks that are not 0."""
    module = module.eval().to(dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters(), start=1):
            size = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(size * normal(*parameter.shape, dtype=dtype, seed=seed))
    return module


def modeling(model: str) -> Any:
    """Return a model's code in transformers, or skip the test where transformers is not installed."""
    pytest.importorskip("transformers", reason="the peer is transformers, which is not installed")
    return importlib.import_module(f"transformers.models.{model}.modeling_{model}")


def eager(config: Any) -> Any:
    """Make a transformers configuration use the model's own plain attention."""
    config._attn_implementation = "eager"
    return config


def mask(kind: str, config: Any, x: Tensor, key_mask: Tensor | None = None, **more: Any) -> Tensor:
    """Return the mask that a model of transformers makes for its own layers, such as ``"causal"``."""
    utilities = importlib.import_module("transformers.masking_utils")
    return getattr(utilities, f"create_{kind}_mask")(config, x, key_mask, past_key_values=None, **more)


def heads(projected: Tensor, width: int) -> Tensor:
    """Cut ``[batch, len, heads · width]`` into ``[batch, heads, len, width]``."""
    return projected.unflatten(-1, (-1, width)).transpose(1, 2)


def joined(output: Tensor) -> Tensor:
    """Join ``[batch, heads, len, width]`` to ``[batch, len, heads · width]``."""
    return output.transpose(1, 2).flatten(2)


def padding(*, left: int = 0, right: int = 0, length: int) -> Tensor:
    """Return a key mask ``[2, length]``: one sequence whole, the other with padding at its ends."""
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, :left] = False
    real[1, length - right :] = False
    return real
