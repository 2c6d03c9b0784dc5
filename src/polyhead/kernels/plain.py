"""The whole score matrix, step by step: every legal spec, at a memory of q_len × kv_len for each head."""

from __future__ import annotations

from torch import Tensor

from polyhead.kernels import stages
from polyhead.kernels.common import Call, Case, Kernel, allowed_pairs, compute_dtype, keys_and_values


def refuse(case: Case) -> str | None:
    """Return why there is no score matrix, or None: this kernel takes every other legal case."""
    return "a cache of sums has no keys left to score" if case.state else None


def run(call: Call) -> tuple[Tensor, Tensor | None]:
    """Compute scores, weights and output one after another; see `Kernel.run`."""
    key, value = (x.to(compute_dtype(call.case.dtype)) for x in keys_and_values(call))
    output, weights = stages.attend(call, key, value, allowed_pairs(call))
    return output.to(call.case.dtype), weights.flatten(1, 2) if call.case.weights else None


KERNEL = Kernel("plain", "the whole score matrix, step by step", refuse, run)
