"""A case with its tensors: what ours runs, and what a peer needs to run the same."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyhead.attention import Attention, attend
from polyhead.bench.case import Case
from polyhead.cache import Cache, GrowingCache, new_cache
from polyhead.errors import UnsupportedError
from polyhead.kernels import common, select
from polyhead.kernels.common import compute_dtype
from polyhead.spec import AttentionSpec, Causal, Full, retention

Outputs = tuple[Tensor, ...]
Run = Callable[[], Outputs]

SCORE_MATRICES = 6
"""Matrices of scores for which a kernel that holds them needs room: plain has five at once, forward or backward."""

SDPA_MATRICES = 3
"""The same for PyTorch's SDPA where it forms them."""

BESIDES = 2**26
"""Bytes that a kernel may take beside tensors and matrices."""

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A case with random tensors on the CPU, the same at every call.

    Attributes:
        case: The case.
        dtype: Dtype of the tensors.
        tensors: Of a layer ``x`` ``[1, length, embed_dim]``; else ``query`` ``[1, heads, length, width]``, of which a
            case with fewer queries uses the last ones, ``key`` and ``value`` if the spec has one. In decoding ``x``
            and ``query`` are the new tokens alone, and there is a row for each sequence.
        params: The learned tensors of a spec; empty for a layer, which has its own.
        layer: Our layer, or None.
        cotangent: The output's gradient in training, of the output's shape.
    """

    case: Case
    dtype: torch.dtype
    tensors: Mapping[str, Tensor]
    params: Mapping[str, Tensor]
    layer: Attention | None
    cotangent: Tensor

    @classmethod
    def of(cls, case: Case, dtype: torch.dtype, *, seed: int = 0) -> Work:
        """Draw the tensors of a case."""
        torch.manual_seed(seed)
        spec, length = case.attention, case.length
        if case.layer is not None:
            layer = Attention(case.layer, dtype=dtype).eval().requires_grad_(case.training)
            tokens = case.q_len if case.decoding else length
            x = torch.randn(1, tokens, case.layer.embed_dim, dtype=dtype).requires_grad_(case.training)
            cotangent = torch.randn(x.shape, dtype=dtype)
            return cls(case=case, dtype=dtype, tensors={"x": x}, params={}, layer=layer, cotangent=cotangent)
        batch, asked = len(case.sequences) or 1, case.q_len if case.decoding else length
        shapes = {
            name: (batch, shape[0], asked if name == "query" else length, shape[1])
            for name, shape in spec.input_shapes().items()
            if shape
        }
        tensors = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
        params = {name: 0.1 * torch.randn(shape, dtype=dtype) for name, shape in spec.parameter_shapes().items()}
        for tensor in (*tensors.values(), *params.values()):
            tensor.requires_grad_(case.training)
        cotangent = torch.randn(batch, spec.num_heads, case.q_len, spec.v_head_dim, dtype=dtype)
        return cls(case=case, dtype=dtype, tensors=tensors, params=params, layer=None, cotangent=cotangent)

    @property
    def query(self) -> Tensor:
        """The queries of the case, ``[1, heads, q_len, width]``."""
        query = self.tensors["query"]
        return query if self.case.queries is None else query[:, :, -self.case.q_len :].contiguous()

    def ours(self, spec: AttentionSpec | None = None, *, kernel: str | None = None) -> Run:
        """Return what ours runs.

        Args:
            spec: Another mechanism over the same tensors. None: the case's own.
            kernel: Which kernel. None: the case's.

        Returns:
            A call that returns the output, and in training the gradients.
        """
        kernel = kernel or self.case.kernel
        if self.case.decoding:
            return self._decoding(kernel)
        if self.layer is not None:
            layer = self.layer if spec is None else self._layer_with(spec)
            x = self.tensors["x"]
            return self.timed(lambda: layer(x, kernel=kernel), [x, *layer.parameters()])
        chosen, query = spec or self.case.attention, self.query
        key, value, params = self.tensors["key"], self.tensors.get("value"), self.params
        learned = [params[name] for name in params]
        inputs = [self.tensors[name] for name in self.tensors if name != "query"]
        return self.timed(
            lambda: attend(query, key, value, chosen, params=params, kernel=kernel), [query, *inputs, *learned]
        )

    def timed(self, forward: Callable[[], Tensor], wrt: Sequence[Tensor], cotangent: Tensor | None = None) -> Run:
        """Return a call that runs a forward pass, and in training the backward pass with respect to some tensors."""
        given = self.cotangent if cotangent is None else cotangent

        def without_gradients() -> Outputs:
            with torch.no_grad():
                return (forward(),)

        def with_gradients() -> Outputs:
            output = forward()
            return (output, *torch.autograd.grad(output, wrt, given))

        return with_gradients if self.case.training else without_gradients

    def filled_cache(self) -> Cache:
        """Return a cache with all keys but the last ones, which stand for the new tokens'; a layer's are random."""
        case, spec = self.case, self.case.attention
        lengths = case.sequences or (case.length,)
        longest = max(lengths) if retention(spec).kind == "growing" else None  # the others take tokens without end
        cache = new_cache(spec, batch=len(lengths), max_seq_len=longest, dtype=self.dtype)
        past = [length - case.q_len for length in lengths]
        if self.layer is not None:
            key, value = (
                None if x is None else torch.randn(1, x[0], past[0], x[1], dtype=self.dtype)
                for x in (spec.input_shapes()["key"], spec.input_shapes()["value"])
            )
            params = {name: getattr(self.layer, name) for name in spec.parameter_shapes()}
        else:
            key, value = (
                None if x is None else x[:, :, : max(past)] for x in (self.tensors["key"], self.tensors.get("value"))
            )
            params = dict(self.params)
        assert key is not None
        cache.append(key, value, params=params, lengths=past)
        return cache

    def _decoding(self, kernel: str) -> Run:
        """Return a call for the next tokens after a cache, which are taken back where that is possible."""
        cache, layer, spec = self.filled_cache(), self.layer, self.case.attention
        past = cache.lengths

        def new(x: Tensor | None) -> Any:
            places = (slice(length, length + self.case.q_len) for length in past)
            return None if x is None else torch.stack([own[:, some] for own, some in zip(x, places, strict=True)])

        tokens = {} if layer is not None else {name: new(self.tensors.get(name)) for name in ("key", "value")}

        def forward() -> Tensor:
            if layer is not None:
                output: Tensor = layer(self.tensors["x"], cache=cache, kernel=kernel)
            else:
                output = attend(self.query, **tokens, spec=spec, params=self.params, cache=cache, kernel=kernel)
            if isinstance(cache, GrowingCache):
                cache.crop(past)
            return output

        return self.timed(forward, [])

    def _layer_with(self, spec: AttentionSpec) -> Attention:
        assert self.layer is not None
        layer = Attention(dataclasses.replace(self.layer.spec, attention=spec), dtype=self.dtype).eval()
        layer.load_state_dict(self.layer.state_dict())
        return layer.requires_grad_(self.case.training)


def kernel_of(case: Case, dtype: torch.dtype) -> str:
    """Return the name of the kernel that ours runs a case on: the case's, or the one that `auto` picks."""
    return select.choose(_asked(case, dtype)).name if case.kernel == "auto" else case.kernel


def refusal(case: Case, dtype: torch.dtype) -> str | None:
    """Return why the kernel that a case is for does not run it here, or None."""
    try:
        select.choose(_asked(case, dtype), case.kernel)
    except UnsupportedError as error:
        return str(error)
    return None


def no_room(case: Case, dtype: torch.dtype) -> str | None:
    """Return why ours cannot run a case in the memory there is, or None."""
    return lacking(needed_bytes(case, dtype), f"on kernel {kernel_of(case, dtype)}")


def needed_bytes(case: Case, dtype: torch.dtype) -> float:
    """Return about how many bytes ours takes to run a case: its tensors, and matrices of all pairs where there are any.

    A kernel that could return the weights holds the scores of all pairs, and no other does. PyTorch's SDPA makes
    numbers of a mask, and forms the scores where keys and values differ in width.
    """
    asked, spec, pairs = _asked(case, dtype), case.attention, case.q_len * case.length
    kernel = select.choose(asked, case.kernel)
    needed = _tensor_bytes(case, dtype) + BESIDES
    if kernel.refuse(asked._replace(weights=True)) is None:
        return needed + SCORE_MATRICES * spec.num_heads * spec.num_maps * pairs * compute_dtype(dtype).itemsize
    if kernel.name == "dense":
        square = case.q_len in (1, case.length)
        if spec.pattern != Full() and not (spec.pattern == Causal() and square):
            needed += (spec.num_heads if spec.pattern.per_head else 1) * pairs * (2 + dtype.itemsize)
        if spec.qk_head_dim != spec.v_head_dim:
            needed += SDPA_MATRICES * spec.num_heads * pairs * dtype.itemsize
    return needed


def _asked(case: Case, dtype: torch.dtype) -> common.Case:
    return common.Case(
        spec=case.attention,
        q_len=case.q_len,
        kv_len=case.length,
        dtype=dtype,
        needs_grad=case.training,
        aligned=not case.sequences,
        ragged=bool(case.sequences),
    )


def _tensor_bytes(case: Case, dtype: torch.dtype) -> int:
    """Count queries, keys, values and output, a layer's input and output, and as many gradients in training."""
    shapes = case.attention.input_shapes()
    stored = sum(math.prod(shape) for name, shape in shapes.items() if name != "query" and shape)
    asked = math.prod(shapes["query"] or ()) + case.attention.num_heads * case.attention.v_head_dim
    around = 0 if case.layer is None else 2 * case.layer.embed_dim
    keys = sum(case.sequences) or case.length
    numbers = keys * (stored + around) * (2 if case.decoding else 1) + case.q_len * asked  # a cache holds them again
    return numbers * dtype.itemsize * (2 if case.training else 1)


def lacking(needed: float, where: str) -> str | None:
    """Say that some bytes are more than there are free, or return None."""
    free = free_memory()
    if needed <= free:
        return None
    return f"needs {needed / GIB:.1f} GiB {where}, and {free / GIB:.1f} GiB are free"


def free_memory() -> float:
    """Return how many bytes a process may still take: what Linux calls available, elsewhere half of all there are."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024.0 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
