"""PyTorch's flash attention for the CPU, tile by tile, forward and backward.

The operator behind ``scaled_dot_product_attention`` takes any additive mask with any strides and returns the
log-sum-exp of each row; the public function keeps both to itself. It is private, so all use of it is here, and
`missing` says where it is not what this file knows.

Nothing is kept of a tile but its rows' outputs and log-sum-exps. The backward pass makes the tiles again: from the
log-sum-exp of a *whole* row, the operator's own backward gives a tile's exact share of the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from polyhead.kernels.common import Case, compute_dtype

_FORWARD = "_scaled_dot_product_flash_attention_for_cpu"
_ARGUMENTS = (
    ("query", "key", "value", "dropout_p", "is_causal", "attn_mask", "scale"),
    ("grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal", "attn_mask", "scale"),
)
KEYS_AT_ONCE = 4096
"""Keys whose gradients a backward step forms beside those it adds them to."""


Part = Literal["whole", "first", "more"]


class Tile(NamedTuple):
    """Consecutive queries and the keys that some of them meet; or several such, one after the other, of one shape.

    Attributes:
        queries: Which queries, counted from the first.
        keys: Ranges of keys, one after the other; or ``[times, num_heads, count]`` numbers of runs of keys, each head
            its own.
        mask: What is added to the scores, ``[batch or times or 1, num_heads or 1, queries or 1, keys]``: −inf for a
            pair that may not meet. None: all meet.
        flipped: Whether the mask's rows run from the last query to the first.
        steps: By how much each range of keys moves from one of several to the next.
        times: How many there are; the operator takes them at once, as a batch.
        causal: Whether a query meets the keys up to its own place; there is no mask then.
        unit: Keys in a run, where these are numbered; keys must be a multiple.
        part: ``"whole"``; or ``"first"`` or ``"more"`` of the keys that its queries meet, in tiles that follow.
    """

    queries: slice
    keys: tuple[slice, ...] | Tensor
    mask: Tensor | None = None
    flipped: bool = False
    steps: tuple[int, ...] = ()
    times: int = 1
    causal: bool = False
    unit: int = 1
    part: Part = "whole"


Tiles = Callable[[Tensor | None], Iterator[Tile]]
"""Makes the tiles, from the bias of each distance if there is one. Each query is in one tile that is not ``"more"``."""


def missing() -> str | None:
    """Return why PyTorch's operator cannot be called, or None."""
    for name, arguments in zip((_FORWARD, f"{_FORWARD}_backward"), _ARGUMENTS, strict=True):
        packet = getattr(torch.ops.aten, name, None)
        if packet is None:
            return f"PyTorch {torch.__version__} has no operator {name}"
        if tuple(argument.name for argument in packet.default._schema.arguments) != arguments:
            return f"PyTorch {torch.__version__} has another operator {name} than this knows"
    return None


def joins_exactly(case: Case) -> bool:
    """Whether a row may be put together from tiles: in half precision each of them would have been rounded before."""
    return case.dtype == compute_dtype(case.dtype)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tiles: Tiles,
    *,
    scale: float,
    sinks: Tensor | None = None,
    distance_bias: Tensor | None = None,
    gradient: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Compute softmax attention over tiles.

    Args:
        query: ``[batch, num_heads, q_len, width]``.
        key: ``[batch, num_kv_heads, kv_len, width]``.
        value: ``[batch, num_kv_heads, kv_len, width]``.
        tiles: Makes the tiles.
        scale: What scores are multiplied by.
        sinks: ``[num_heads]``, what each row's softmax may spend on nothing, or None.
        distance_bias: What ``tiles`` is given.
        gradient: Returns the gradient of ``distance_bias``, from ``query, key, value, output, lse, grad_output``;
            needed where it requires one.

    Returns:
        ``[batch, num_heads, q_len, width]``.
    """
    tensors = (_rows(query), _rows(key), _rows(value))
    output: Tensor = _Tiled.apply(*tensors, sinks, distance_bias, tiles, scale, gradient)  # type: ignore[no-untyped-call]
    return output


def forward(query: Tensor, key: Tensor, value: Tensor, tiles: Iterator[Tile], scale: float) -> tuple[Tensor, Tensor]:
    """Return the output and its log-sum-exps ``[batch, num_heads, q_len]``; zeros where no key is met."""
    wide = torch.promote_types(query.dtype, torch.float32)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = torch.empty(query.shape[:3], dtype=wide, device=query.device)
    for tile in tiles:
        if _is_empty(tile):
            output[:, :, tile.queries], lse[:, :, tile.queries] = 0.0, 0.0
            continue
        for q, k, v, out, row_lse in _apart(tile, query, key, value, output, lse):
            operands = (_some(q, tile), _met(k, tile, q.shape[1]), _met(v, tile, q.shape[1]))
            rows, sums = getattr(torch.ops.aten, _FORWARD)(
                *operands, is_causal=tile.causal, attn_mask=tile.mask, scale=scale
            )
            if tile.part != "whole" and tile.mask is not None:  # what is 0 here would be a sum of 1
                sums = sums.masked_fill((tile.mask == -torch.inf).all(dim=-1), -torch.inf)
            rows, sums = _turned(rows, tile), _turned(sums, tile)
            if rows.shape == output.shape and tile.part == "whole":
                return rows, sums
            if tile.part == "more":
                join(_rows_of(out, tile), _rows_of(row_lse, tile), rows, sums)
                continue
            _rows_of(out, tile).copy_(rows)
            _rows_of(row_lse, tile).copy_(sums)
    return output, lse.masked_fill_(lse == -torch.inf, 0.0)


def in_stretches(query: Tensor, key: Tensor, value: Tensor, size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Compute attention of a few queries over many keys, whose stretches take the place of a batch.

    Threads share what is in a batch, and a few queries alone would be one thread's.

    Args:
        query: ``[batch, heads, queries, width]``.
        key: ``[batch, heads, kv_len, width]``.
        value: ``[batch, heads, kv_len, width]``.
        size: Keys in a stretch.
        scale: The factor on q·k.

    Returns:
        The output, and its log-sum-exps ``[batch, heads, queries]``, which `join` takes.
    """
    whole = key.shape[2] - key.shape[2] % size
    output = query.new_zeros(query.shape)
    sums = torch.full(query.shape[:3], -torch.inf, dtype=compute_dtype(query.dtype), device=query.device)
    for row in range(query.shape[0]):
        some = slice(row, row + 1)
        for keys, count in ((slice(0, whole), whole // size), (slice(whole, None), 1)):
            stretches = [x[row, :, keys].unflatten(1, (count, -1)).transpose(0, 1) for x in (key, value) if count]
            if not stretches or not stretches[0].shape[2]:
                continue
            rows = query[some].expand(count, -1, -1, -1)
            out, lse = getattr(torch.ops.aten, _FORWARD)(rows, *stretches, scale=scale)
            total = lse.logsumexp(0, keepdim=True)
            out = (out * (lse - total).exp().unsqueeze(-1)).sum(0, keepdim=True)
            join(output[some], sums[some], out, total)
    return output, sums


def join(rows: Tensor, sums: Tensor, more_rows: Tensor, more_sums: Tensor) -> None:
    """Change the output and the log-sum-exps of some keys into those of more keys too."""
    total = torch.logaddexp(sums, more_sums)
    share = more_sums.sub_(total).exp_().masked_fill_(total == -torch.inf, 0.0)
    rows.lerp_(more_rows, share.unsqueeze(-1))
    sums.copy_(total)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        distance_bias: Tensor | None,
        tiles: Tiles,
        scale: float,
        gradient: Callable[..., Tensor] | None,
    ) -> Tensor:
        output, lse = forward(query, key, value, tiles(distance_bias), scale)
        if sinks is not None:  # one more column of the softmax, which meets no value
            with_sink = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
            output *= (lse - with_sink).exp().unsqueeze(-1)
            lse = with_sink
        ctx.save_for_backward(query, key, value, sinks, distance_bias, output, lse)
        ctx.tiles, ctx.scale, ctx.gradient = tiles, scale, gradient
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        query, key, value, sinks, distance_bias, output, lse = ctx.saved_tensors
        grad_output = _rows(grad_output)
        tiles = ctx.tiles(distance_bias)
        grads = _backward(grad_output, (query, key, value), output, lse, tiles, ctx.scale)
        grad_sinks = grad_bias = None
        if ctx.needs_input_grad[3]:
            spent = (sinks.to(lse.dtype)[:, None] - lse).exp() * (grad_output * output).sum(dim=-1)
            grad_sinks = -spent.sum(dim=(0, 2)).to(sinks.dtype)
        if ctx.needs_input_grad[4]:
            grad_bias = ctx.gradient(query, key, value, output, lse, grad_output)
        return (*grads, grad_sinks, grad_bias, None, None, None)


def _backward(
    grad_output: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    output: Tensor,
    lse: Tensor,
    tiles: Iterator[Tile],
    scale: float,
) -> tuple[Tensor, ...]:
    contiguous = torch.contiguous_format
    query, num_heads = inputs[0], inputs[0].shape[1]
    grad_query = torch.empty_like(query, dtype=lse.dtype, memory_format=contiguous)
    sums: list[Tensor] | None = None
    step = getattr(torch.ops.aten, f"{_FORWARD}_backward")
    for tile in tiles:
        if _is_empty(tile):
            grad_query[:, :, tile.queries] = 0.0
        is_first = tile.part != "more"
        for part in _parts(tile):
            if sums is None:
                sums = [torch.zeros_like(x, dtype=lse.dtype, memory_format=contiguous) for x in inputs[1:]]
            for grad, q, k, v, out, row_lse, to_query, *totals in _apart(
                part, grad_output, *inputs, output, lse, grad_query, *sums
            ):
                rows = [_some(x, part) for x in (grad, q, out, row_lse)]
                met = [_met(x, part, num_heads) for x in (k, v)]
                some, *grads = step(*rows[:2], *met, *rows[2:], 0.0, part.causal, attn_mask=part.mask, scale=scale)
                held, some = _rows_of(to_query, part), _turned(some, part)
                held.copy_(some) if is_first else held.add_(some)
                for total, more in zip(totals, grads, strict=True):
                    _add(total, more, part, num_heads)
            is_first = False
    if sums is None:  # no query meets a key
        sums = [torch.zeros_like(x) for x in inputs[1:]]
    return tuple(grad.to(x.dtype) for grad, x in zip((grad_query, *sums), inputs, strict=True))


def _parts(tile: Tile) -> Iterator[Tile]:
    """Cut a tile of many keys, so that their gradients are not all formed beside those they are added to."""
    if _is_empty(tile):
        return
    if isinstance(tile.keys, Tensor) or len(tile.keys) > 1 or tile.times > 1 or tile.causal:
        yield tile
        return
    (keys,) = tile.keys
    for start in range(keys.start, keys.stop, KEYS_AT_ONCE):
        stop = min(start + KEYS_AT_ONCE, keys.stop)
        mask = None if tile.mask is None else tile.mask[..., start - keys.start : stop - keys.start]
        yield tile._replace(keys=(slice(start, stop),), mask=mask)


def _is_empty(tile: Tile) -> bool:
    return not isinstance(tile.keys, Tensor) and not tile.keys


def _rows(x: Tensor) -> Tensor:
    """Return a tensor whose rows lie together, as the operator takes them without asking."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _apart(tile: Tile, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the tensors as the operator can take them at once: several tiles take the place of a batch."""
    if tile.times == 1:
        yield tensors
        return
    for row in range(len(tensors[0])):
        yield tuple(x[row : row + 1] for x in tensors)


def _rows_of(x: Tensor, tile: Tile) -> Tensor:
    """Return the rows of a tile's queries, a view; of several tiles ``[times, heads, queries, ...]``."""
    rows = x[:, :, tile.queries]
    return rows if tile.times == 1 else rows[0].unflatten(1, (tile.times, -1)).transpose(0, 1)


def _some(x: Tensor, tile: Tile) -> Tensor:
    return _turned(_rows_of(x, tile), tile)


def _turned(x: Tensor, tile: Tile) -> Tensor:
    return x.flip(2) if tile.flipped else x


def _met(x: Tensor, tile: Tile, num_heads: int) -> Tensor:
    """Return the rows of a tile's keys; where each head has its own, of every query head."""
    if isinstance(tile.keys, Tensor):
        places = _places(x, tile, tile.keys, num_heads)
        rows = x.reshape(-1, tile.unit * x.shape[-1]).index_select(0, places.flatten())
        return rows.view(*places.shape[:2], -1, x.shape[-1])
    pieces = list(_ranges(x, tile))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _places(x: Tensor, tile: Tile, runs: Tensor, num_heads: int) -> Tensor:
    """Return the places of a tile's runs among all runs of ``x``, ``[batch or times, num_heads, count]``."""
    batch, kv_heads, kv_len = x.shape[:3]
    heads = torch.arange(num_heads, device=x.device) // (num_heads // kv_heads)
    before = torch.arange(batch, device=x.device)[:, None] * kv_heads + heads
    return before[..., None] * (kv_len // tile.unit) + runs


def _ranges(x: Tensor, tile: Tile) -> Iterator[Tensor]:
    """Yield each range of keys, a view; those of several tiles overlap where tiles see the same keys."""
    assert not isinstance(tile.keys, Tensor)
    for index, some in enumerate(tile.keys):
        rows = x[:, :, some]
        if tile.times == 1:
            yield rows
        else:
            strides = (tile.steps[index] * x.stride(2), *x.stride()[1:])
            yield rows.as_strided((tile.times, *rows.shape[1:]), strides, rows.storage_offset())


def _add(total: Tensor, grad: Tensor, tile: Tile, num_heads: int) -> None:
    """Add the gradients of a tile's keys; several tiles may have met a key, so one after the other."""
    if isinstance(tile.keys, Tensor):
        width = tile.unit * total.shape[-1]
        total.view(-1, width).index_add_(
            0, _places(total, tile, tile.keys, num_heads).flatten(), grad.reshape(-1, width).to(total.dtype)
        )
        return
    for index in range(tile.times):
        own = grad if tile.times == 1 else grad[index : index + 1]
        steps = tile.steps or (0,) * len(tile.keys)
        start = 0
        for some, step in zip(tile.keys, steps, strict=True):
            stop = start + some.stop - some.start
            total[:, :, some.start + index * step : some.stop + index * step] += own[:, :, start:stop]
            start = stop
