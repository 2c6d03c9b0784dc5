"""A computation in pieces, forward and backward, at the memory of one piece beyond inputs, output and gradients.

Left to itself, autograd keeps what every piece has computed, and gives each part of a tensor a gradient of the
tensor's whole size. Here the forward pass keeps its inputs alone, and the backward pass computes each piece again and
adds its gradients in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.kernels.common import compute_dtype, full_precision

Part = tuple[slice | Tensor, ...]
"""A part of a tensor: slices of its first dimensions, of which the last may be a list of places instead."""


class Piece(NamedTuple):
    """A piece of a computation.

    Attributes:
        parts: What it reads of each tensor.
        output: Where in the output its result goes.
        run: Takes the parts, in the compute dtype, and what the piece before passed on; returns the result, and what
            it passes on itself.
    """

    parts: tuple[Part, ...]
    output: Part
    run: Callable[..., tuple[Tensor, ...]]


class Plan(NamedTuple):
    """Pieces that make an output.

    Attributes:
        num_pieces: How many there are.
        piece: Makes one of them, by its number; called again for the backward pass, so that nothing is kept.
        shape: The output's shape.
        dtype: Its dtype.
    """

    num_pieces: int
    piece: Callable[[int], Piece]
    shape: Sequence[int]
    dtype: torch.dtype


def piecewise(plan: Plan, tensors: Sequence[Tensor], passed: Sequence[Tensor] = ()) -> Tensor:
    """Compute an output piece by piece.

    Args:
        plan: The pieces.
        tensors: What they read.
        passed: What the first piece is passed, in the compute dtype.

    Returns:
        The output. Its gradient can be differentiated again, at the memory of all pieces.
    """
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *passed))
    if not wanted or torch.compiler.is_compiling():  # compiled code decides for itself what to compute again
        return _through(plan, tensors, passed)
    output: Tensor = _Piecewise.apply(plan, len(tensors), *tensors, *passed)  # type: ignore[no-untyped-call]
    return output


class _Piecewise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, count: int, *inputs: Tensor) -> Tensor:
        kept: list[Tensor] = []
        output = _through(plan, inputs[:count], inputs[count:], kept)
        ctx.plan, ctx.count, ctx.width = plan, count, len(inputs) - count
        ctx.save_for_backward(*inputs, *kept)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tensors, kept = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count + ctx.width :]
        inputs, wanted = ctx.saved_tensors[: ctx.count + ctx.width], ctx.needs_input_grad[2:]
        if torch.is_grad_enabled():
            return None, None, *_differentiable(ctx.plan, inputs, ctx.count, wanted, grad)
        totals = [
            torch.zeros_like(x, dtype=compute_dtype(x.dtype)) if want else None
            for x, want in zip(tensors, wanted, strict=False)
        ]
        passed_grads = _back(ctx.plan, tensors, kept, ctx.width, grad, totals)
        grads = (g if g is None else g.to(x.dtype) for g, x in zip([*totals, *passed_grads], inputs, strict=True))
        return None, None, *(g if want else None for g, want in zip(grads, wanted, strict=True))


def _through(
    plan: Plan, tensors: Sequence[Tensor], passed: Sequence[Tensor], kept: list[Tensor] | None = None
) -> Tensor:
    """Run the pieces one after another; keep what each is passed, if asked to."""
    output = tensors[0].new_empty(plan.shape, dtype=plan.dtype)
    for number in range(plan.num_pieces):
        if kept is not None:
            kept.extend(passed)
        piece = plan.piece(number)
        result, *passed = piece.run(*_parts(tensors, piece), *passed)
        output[piece.output] = result.to(plan.dtype)
    return output


def _back(
    plan: Plan, tensors: Sequence[Tensor], kept: Sequence[Tensor], width: int, grad: Tensor, totals: list[Tensor | None]
) -> list[Tensor | None]:
    """Run the pieces again from the last to the first, and add up their gradients in ``totals``.

    Args:
        plan: The pieces.
        tensors: What they read.
        kept: What each was passed, one after another.
        width: How many tensors each was passed.
        grad: The output's gradient.
        totals: For each tensor its gradient so far, or None if it needs none.

    Returns:
        The gradients of what the first piece was passed.
    """
    passed_grads: list[Tensor | None] = [None] * width
    for number in reversed(range(plan.num_pieces)):
        piece = plan.piece(number)
        parts = [
            part.detach().requires_grad_(total is not None)
            for part, total in zip(_parts(tensors, piece), totals, strict=True)
        ]
        passed = [x.detach().requires_grad_() for x in kept[number * width : (number + 1) * width]]
        with full_precision(grad.device.type):  # backward may be called under autocast, whose dtype is none to sum in
            with torch.enable_grad():
                ends = piece.run(*parts, *passed)
            grads = [grad[piece.output].to(ends[0].dtype), *passed_grads]
            found = _gradients(ends, grads, [*parts, *passed])
        for total, where, one in zip(totals, piece.parts, found, strict=False):
            if total is not None and one is not None:
                _add(total, where, one)
        passed_grads = found[len(parts) :]
    return passed_grads


def _gradients(ends: Sequence[Tensor], grads: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """Return what reaches each leaf from some ends, of which not all need a gradient or have one."""
    pairs = [(end, grad) for end, grad in zip(ends, grads, strict=True) if end.requires_grad and grad is not None]
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    if not pairs:
        return [None] * len(leaves)
    found = iter(torch.autograd.grad([e for e, _ in pairs], asked, [g for _, g in pairs], allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def _differentiable(
    plan: Plan, inputs: Sequence[Tensor], count: int, wanted: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Return gradients that have gradients themselves: through all pieces at once."""
    with full_precision(grad.device.type):
        output = _through(plan, inputs[:count], inputs[count:])
    asked = [x for x, want in zip(inputs, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(output, asked, grad, create_graph=True, allow_unused=True))
    return [next(found) if want else None for want in wanted]


def _parts(tensors: Sequence[Tensor], piece: Piece) -> list[Tensor]:
    return [_read(x, where).to(compute_dtype(x.dtype)) for x, where in zip(tensors, piece.parts, strict=True)]


def _read(x: Tensor, where: Part) -> Tensor:
    *before, last = where or (slice(None),)
    part = x[tuple(before)]
    return part.index_select(len(before), last) if isinstance(last, Tensor) else part[(*_all(before), last)]


def _add(total: Tensor, where: Part, more: Tensor) -> None:
    *before, last = where or (slice(None),)
    part = total[tuple(before)]
    if isinstance(last, Tensor):
        if more.shape[: len(before)].numel() == 1:  # rows of a matrix are added three times as fast
            part, more, before = part.view(part.shape[len(before) :]), more.view(more.shape[len(before) :]), []
        part.index_add_(len(before), last, more)
    else:
        part[(*_all(before), last)].add_(more)


def _all(before: Sequence[Any]) -> list[slice]:
    return [slice(None)] * len(before)
