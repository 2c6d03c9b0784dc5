"""The gradient of a bias that goes by distance: what the score gradients of each diagonal sum to.

A learned table has few entries, and from some distance on all keys of a side share one (T5: about 91 for 32 buckets
up to 128). Score gradients ``dS = P ∘ (dO·Vᵀ − δ)``, with δ the row sums of ``dO ∘ O``, are formed only where entries
differ. A row's far keys at the left sum to ``p·(dO·O_far − δ)``, where ``O_far`` is attention over them alone and ``p``
their share of the row's softmax; those at the right follow from a row of dS summing to zero, or to δ times what a sink
took.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polyhead.kernels import flash, tiles
from polyhead.kernels.common import Call
from polyhead.position import relative
from polyhead.spec import Band

ROWS = 128
"""Queries whose score gradients are formed at once."""

MOST_BYTES = 2**23
"""Size of the queries of some heads that are taken at once: outputs as large are formed."""

MOST_ELEMENTS = 2**22
"""Most score gradients that are formed at once."""


class Backward(NamedTuple):
    """What a backward pass knows of some heads; ``lse`` and ``delta`` are ``[batch, heads, q_len]``."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    lse: Tensor
    grad_output: Tensor

    @property
    def delta(self) -> Tensor:
        """δ, the row sums of ``dO ∘ O``."""
        return (self.grad_output.to(self.lse.dtype) * self.output).sum(dim=-1)


def table_gradient(call: Call, bias: Tensor, sinks: Tensor | None, *tensors: Tensor) -> Tensor:
    """Return a gradient of ``bias`` whose sums over the distances of one entry are right.

    Args:
        call: What is asked; its pattern is a band.
        bias: Of these heads, see `polyhead.kernels.tiles.distance_bias`.
        sinks: Of these heads, or None.
        *tensors: The fields of `Backward`.

    Returns:
        ``[heads, distances]``; what is far stands at one distance of its entry.
    """
    given = Backward(*tensors)
    num_kv_heads = given.key.shape[1]
    group = len(bias) // num_kv_heads
    at_once = max(1, MOST_BYTES // (given.query[:, :group].numel() * given.query.element_size()))
    found = []
    for start in range(0, num_kv_heads, at_once):
        keys = slice(start, min(start + at_once, num_kv_heads))
        own = slice(keys.start * group, keys.stop * group)
        by_key = {name: getattr(given, name)[:, keys] for name in ("key", "value")}
        some = Backward(**{name: x[:, own] for name, x in given._asdict().items()} | by_key)
        found.append(_of_heads(call, bias[own].detach(), None if sinks is None else sinks[own], some))
    return torch.cat(found)


def _of_heads(call: Call, bias: Tensor, sinks: Tensor | None, given: Backward) -> Tensor:
    origin, delta = call.case.kv_len - 1, given.delta
    (lowest, highest), (low, high) = _distances(call)
    total = _near(call, bias, (low, high), given, delta)
    rest = -total.sum(dim=1)
    if sinks is not None:
        rest = rest + ((sinks[:, None] - given.lse).exp() * delta).sum(dim=(0, 2))
    if low > lowest and high < highest:
        left = _far_left(call, bias, low - 1, given, delta)
        total[:, lowest + origin] += left
        rest = rest - left
    if high < highest:
        total[:, highest + origin] += rest
    elif low > lowest:
        total[:, lowest + origin] += rest
    return total.to(bias.dtype)


def _distances(call: Call) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the lowest and highest distance that is seen, and those between which entries differ."""
    case, pattern = call.case, call.case.spec.pattern
    assert isinstance(pattern, Band)
    lowest = 1 - case.kv_len if pattern.left is None else max(1 - case.kv_len, -pattern.left)
    highest = case.q_len - 1 if pattern.right is None else min(case.q_len - 1, pattern.right)
    seen = torch.arange(lowest, highest + 1)[None]
    entries = relative.entries(case.spec, seen.new_zeros(1, 1), seen)[0, 0]
    left, right = (entries != entries[0]).nonzero(), (entries != entries[-1]).nonzero()
    if not len(left):  # one entry for all
        return (lowest, highest), (highest + 1, highest)
    return (lowest, highest), (lowest + int(left[0]), lowest + int(right[-1]))


def _near(call: Call, bias: Tensor, near: tuple[int, int], given: Backward, delta: Tensor) -> Tensor:
    """Return the sums of the score gradients at each distance that is near, and zeros at the others."""
    case = call.case
    total = torch.zeros(bias.shape, dtype=given.lse.dtype, device=bias.device)
    distances = torch.arange(1 - case.kv_len, case.q_len, device=bias.device)
    vector = bias.to(total.dtype).masked_fill((distances < near[0]) | (distances > near[1]), -torch.inf).contiguous()
    for queries, keys in _blocks(call, near):
        begin = case.kv_len + keys.start - (case.kv_len - case.q_len + queries.stop)
        shape = (len(bias), queries.stop - queries.start, keys.stop - keys.start)
        mask = vector.as_strided(shape, (vector.stride(0), 1, 1), begin)
        query, grad, lse, row_delta = (
            x[:, :, queries].flip(2).to(total.dtype) for x in (given.query, given.grad_output, given.lse, delta)
        )
        key, value = (x[:, :, keys].to(total.dtype) for x in (given.key, given.value))
        weights = _products(query * case.spec.scale, key).add_(mask).sub_(lse.unsqueeze(-1)).exp_()
        weights *= _products(grad, value).sub_(row_delta.unsqueeze(-1))
        sums = _diagonal_sums(weights.sum(dim=0))
        total[:, begin : begin + sums.shape[1]] += sums
    return total


def _blocks(call: Call, near: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Return queries, and the keys that are near one of them."""
    case = call.case
    first = case.kv_len - case.q_len
    width = min(case.kv_len, near[1] - near[0] + ROWS)
    rows = max(1, min(ROWS, MOST_ELEMENTS // max(1, width * len(call.query) * case.spec.num_heads)))
    for start in range(0, case.q_len, rows):
        stop = min(start + rows, case.q_len)
        keys = slice(max(0, first + start + near[0]), min(case.kv_len, first + stop + near[1]))
        if keys.start < keys.stop:
            yield slice(start, stop), keys


def _products(rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``[batch, heads, rows, columns]``, the columns of fewer heads being shared by groups."""
    by_group = rows.unflatten(1, (columns.shape[1], -1)).flatten(2, 3)
    products: Tensor = by_group @ columns.mT
    return products.view(*rows.shape[:3], columns.shape[2])


def _diagonal_sums(x: Tensor) -> Tensor:
    """Return ``sums[c] = Σ x[i, j] over i + j = c``: rows are shifted, each by one more, and summed.

    Args:
        x: ``[heads, rows, columns]``.

    Returns:
        ``[heads, rows + columns − 1]``.
    """
    heads, rows, columns = x.shape
    flat = functional.pad(x, (0, rows)).flatten(1)[:, : rows * (columns + rows - 1)]
    return flat.view(heads, rows, columns + rows - 1).sum(dim=1)


def _far_left(call: Call, bias: Tensor, last: int, given: Backward, delta: Tensor) -> Tensor:
    """Return what the score gradients of keys up to a distance sum to, ``[heads]``."""
    case, pattern = call.case, call.case.spec.pattern
    assert isinstance(pattern, Band)
    laid_out = tiles.band(call, pattern, bias, last=last)
    output, lse = flash.forward(given.query, given.key, given.value, laid_out, case.spec.scale)
    positions = torch.arange(case.kv_len - case.q_len, case.kv_len, device=bias.device)
    share = (
        (lse - given.lse).exp().masked_fill(positions + last < 0, 0.0)
    )  # of a row without a far key lse says nothing
    far = (given.grad_output.to(lse.dtype) * output).sum(dim=-1) - delta
    return (share * far).sum(dim=(0, 2))
