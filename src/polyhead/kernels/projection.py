"""Projections of a single token on a processor, where PyTorch's product of a row and a matrix uses one thread."""

from __future__ import annotations

import array
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyhead.kernels import compiled, team

FEWEST_WEIGHTS = 2**16
"""Weights that are worth a thread, below which a single one is as quick as several."""

EIGHT = 8
"""Numbers that compiled loops take at once."""

_HAS_MKL = torch.backends.mkl.is_available()


def project(linears: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """Apply projections to the same rows; to a single row in float32 with all threads, as PyTorch does not.

    numba's loops go through all matrices together. Where there is no numba, PyTorch computes a product for each thread.

    Args:
        linears: The modules; where one is no plain ``nn.Linear``, or has hooks, all are called as they are.
        x: ``[batch, tokens, in_features]``.

    Returns:
        ``[batch, tokens, out_features]`` of each.
    """
    weights = [_plain_weight(linear) for linear in linears] if _is_single_row(x) else []
    there = [weight for weight in weights if weight is not None]
    if len(there) < len(linears) or sum(weight.numel() for weight in there) < FEWEST_WEIGHTS:
        return [linear(x) for linear in linears]
    in_loops = all(_fits(weight, x) for weight in there) and compiled.unavailable() is None and not _is_watched()
    rows = _together(there, x) if in_loops else [_in_parts(weight, x) for weight in there]
    biases = [linear._parameters["bias"] for linear in linears]
    return [row if bias is None else row + bias for row, bias in zip(rows, biases, strict=True)]


def _is_single_row(x: Tensor) -> bool:
    if type(x) is not Tensor or x.numel() != x.shape[-1] or not x.is_cpu or x.dtype != torch.float32:
        return False
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())


def _plain_weight(linear: nn.Module) -> Tensor | None:
    """Return a module's float32 numbers, if it does nothing but multiply rows by them, and they are here."""
    if type(linear) is not nn.Linear or linear._forward_hooks or linear._forward_pre_hooks:
        return None
    parameters = linear._parameters  # quicker than `linear.weight`; what pruning puts in its place is not there
    weight = parameters.get("weight") if "bias" in parameters else None
    if type(weight) is not nn.Parameter or weight.dtype != torch.float32 or not weight.is_cpu:
        return None
    return weight


def _fits(weight: Tensor, x: Tensor) -> bool:
    """Whether the loops can read a matrix: rows of a width that they take, each in one piece."""
    width = weight.shape[1]
    return width == x.shape[-1] and width % EIGHT == 0 and weight.stride(1) == 1


def _is_watched() -> bool:
    """Whether PyTorch's operations are counted, traced or transformed, as by ``torch.func.vmap``: loops are none."""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._are_functorch_transforms_active()


def _together(weights: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Return the products of a row and several matrices, in loops that numba compiles."""
    row, size, numbers, out = x.contiguous(), x.shape[:-1], 0, []
    table = array.array("q", (0, len(weights), x.shape[-1], row.data_ptr()))
    for weight in weights:
        count = weight.shape[0]
        products = torch.empty((*size, count), dtype=torch.float32)
        table.extend((weight.data_ptr(), weight.stride(0), count, products.data_ptr()))
        out.append(products)
        numbers += weight.numel()
    threads = min(-(-numbers // FEWEST_WEIGHTS), torch.get_num_threads())
    team.run(_worker().address, table.buffer_info()[0], threads)
    return out


@functools.cache
def _worker() -> Any:
    """Return the loops, compiled once."""
    from polyhead.kernels import projection_loops

    return compiled.ready(projection_loops.worker, "projections")


def _in_parts(weight: Tensor, x: Tensor) -> Tensor:
    """Return the product of a row and a matrix as one for each thread, with its part of the outputs."""
    parts = math.gcd(torch.get_num_threads(), len(weight))
    if parts == 1 or not _HAS_MKL or weight.numel() < FEWEST_WEIGHTS:
        return x @ weight.mT
    row = torch.bmm(x.reshape(1, 1, -1).expand(parts, 1, -1), weight.view(parts, -1, weight.shape[1]).mT)
    return row.view(*x.shape[:-1], -1)
