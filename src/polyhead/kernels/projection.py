"""Projections of a single token on a processor, where PyTorch's product of a row and a matrix uses one thread."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

FEWEST_WEIGHTS = 2**16
"""Weights below which a single thread is as quick as several."""

_CPU = torch.device("cpu")
_HAS_MKL = torch.backends.mkl.is_available()


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """Apply a projection; to a single row in float32 as one product for each thread, with its part of the outputs.

    Args:
        linear: The module; one that is no plain ``nn.Linear``, or has hooks, is called as it is.
        x: ``[batch, tokens, in_features]``.

    Returns:
        ``[batch, tokens, out_features]``.
    """
    parts = _parts(linear, x)
    if parts == 1:
        output: Tensor = linear(x)
        return output
    assert isinstance(linear, nn.Linear)
    weights = linear.weight.view(parts, -1, linear.in_features)
    row = torch.bmm(x.reshape(1, 1, -1).expand(parts, 1, -1), weights.mT).view(*x.shape[:-1], -1)
    return row if linear.bias is None else row + linear.bias


def _parts(linear: nn.Module, x: Tensor) -> int:
    """Return into how many products of a single row a projection is cut; 1 where it is left to the module."""
    if x.numel() != x.shape[-1] or x.device != _CPU or x.dtype != torch.float32 or torch.is_grad_enabled():
        return 1
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        return 1
    weight = linear.weight
    if weight.dtype != torch.float32 or weight.device != _CPU or type(weight) is not nn.Parameter:
        return 1
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return 1
    if not _HAS_MKL or weight.numel() < FEWEST_WEIGHTS:
        return 1
    return math.gcd(torch.get_num_threads(), linear.out_features)
