"""A case with its tensors: what ours runs, and what a peer needs to run the same."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from polyhead.attention import Attention, attend
from polyhead.bench.cases import Case
from polyhead.kernels import common, select
from polyhead.kernels.common import compute_dtype
from polyhead.spec import AttentionSpec, Causal, Full

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
            case with fewer queries uses the last ones, ``key`` and ``value`` if the spec has one.
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
            x = torch.randn(1, length, case.layer.embed_dim, dtype=dtype).requires_grad_(case.training)
            cotangent = torch.randn(x.shape, dtype=dtype)
            return cls(case=case, dtype=dtype, tensors={"x": x}, params={}, layer=layer, cotangent=cotangent)
        shapes = {name: (1, shape[0], length, shape[1]) for name, shape in spec.input_shapes().items() if shape}
        tensors = {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}
        params = {name: 0.1 * torch.randn(shape, dtype=dtype) for name, shape in spec.parameter_shapes().items()}
        for tensor in (*tensors.values(), *params.values()):
            tensor.requires_grad_(case.training)
        cotangent = torch.randn(1, spec.num_heads, case.q_len, spec.v_head_dim, dtype=dtype)
        return cls(case=case, dtype=dtype, tensors=tensors, params=params, layer=None, cotangent=cotangent)

    @property
    def query(self) -> Tensor:
        """The queries of the case, ``[1, heads, q_len, width]``."""
        query = self.tensors["query"]
        return query if self.case.queries is None else query[:, :, -self.case.q_len :].contiguous()

    def ours(self, spec: AttentionSpec | None = None, *, kernel: str = "auto") -> Run:
        """Return what ours runs.

        Args:
            spec: Another mechanism over the same tensors. None: the case's own.
            kernel: Which kernel.

        Returns:
            A call that returns the output, and in training the gradients.
        """
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

    def _layer_with(self, spec: AttentionSpec) -> Attention:
        assert self.layer is not None
        layer = Attention(dataclasses.replace(self.layer.spec, attention=spec), dtype=self.dtype).eval()
        layer.load_state_dict(self.layer.state_dict())
        return layer.requires_grad_(self.case.training)


def kernel_of(case: Case, dtype: torch.dtype) -> str:
    """Return the name of the kernel that ours runs a case on."""
    return select.choose(_asked(case, dtype)).name


def no_room(case: Case, dtype: torch.dtype) -> str | None:
    """Return why ours cannot run a case in the memory there is, or None."""
    return lacking(needed_bytes(case, dtype), f"on kernel {kernel_of(case, dtype)}")


def needed_bytes(case: Case, dtype: torch.dtype) -> float:
    """Return about how many bytes ours takes to run a case: its tensors, and matrices of all pairs where there are any.

    A kernel that could return the weights holds the scores of all pairs, and no other does. PyTorch's SDPA makes
    numbers of a mask, and forms the scores where keys and values differ in width.
    """
    asked, spec, pairs = _asked(case, dtype), case.attention, case.q_len * case.length
    kernel = select.choose(asked)
    needed = _tensor_bytes(case, dtype) + BESIDES
    if kernel.refuse(dataclasses.replace(asked, weights=True)) is None:
        return needed + SCORE_MATRICES * spec.num_heads * spec.num_maps * pairs * compute_dtype(dtype).itemsize
    if kernel.name == "dense":
        square = case.q_len in (1, case.length)
        if spec.pattern != Full() and not (spec.pattern == Causal() and square):
            needed += (spec.num_heads if spec.pattern.per_head else 1) * pairs * (2 + dtype.itemsize)
        if spec.qk_head_dim != spec.v_head_dim:
            needed += SDPA_MATRICES * spec.num_heads * pairs * dtype.itemsize
    return needed


def _asked(case: Case, dtype: torch.dtype) -> common.Case:
    return common.Case(spec=case.attention, q_len=case.q_len, kv_len=case.length, dtype=dtype, needs_grad=case.training)


def _tensor_bytes(case: Case, dtype: torch.dtype) -> int:
    """Count queries, keys, values and output, a layer's input and output, and as many gradients in training."""
    shapes = case.attention.input_shapes()
    stored = sum(math.prod(shape) for name, shape in shapes.items() if name != "query" and shape)
    asked = math.prod(shapes["query"] or ()) + case.attention.num_heads * case.attention.v_head_dim
    around = 0 if case.layer is None else 2 * case.layer.embed_dim
    numbers = case.length * (stored + around) + case.q_len * asked
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
