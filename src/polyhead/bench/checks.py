"""What must hold before a time counts: ours computes what the oracle says, and what a peer does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from polyhead.attention import attend
from polyhead.bench.case import Case
from polyhead.bench.work import Work
from polyhead.errors import PolyheadError
from polyhead.oracle import attend as oracle_attend

CHECKED_LENGTH = 700
"""Keys in the check against the oracle: past a window of 512, past eleven blocks of 64, and no multiple of either."""

ALLOWED = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2**-5, torch.float16: 2**-8}
"""Largest difference from what is expected, as a part of the largest number expected."""


class DisagreementError(PolyheadError):
    """Something timed does not compute what it should."""


def check_against_oracle(case: Case, kernel: str, dtype: torch.dtype, *, length: int = CHECKED_LENGTH) -> None:
    """Compare a case's mechanism, at a small length and on a given kernel, with the reference.

    The output is compared with the oracle's, the gradients in training with the plain kernel's in float64.

    Args:
        case: The case; of a layer what lies between its projections.
        kernel: The kernel that the case runs on.
        dtype: Dtype of the tensors.
        length: Number of keys.

    Raises:
        DisagreementError: If they differ by more than rounding.
    """
    small = dataclasses.replace(case, spec=case.attention, sequences=()).at(min(length, case.length))
    work = Work.of(small, dtype)
    output, *gradients = work.ours(kernel=kernel)()
    wide = {name: tensor.detach().double() for name, tensor in {**work.tensors, "query": work.query}.items()}
    params = {name: tensor.detach().double() for name, tensor in work.params.items()}
    query, key = wide["query"], wide["key"]
    value = wide.get("value")
    arrays = (query.numpy(), key.numpy(), None if value is None else value.numpy())
    learned = {name: tensor.numpy() for name, tensor in params.items()}
    expected = oracle_attend(*arrays, case.attention, params=learned)
    where = f"kernel {kernel} at {small.q_len} queries and {small.length} keys"
    check_close(output, torch.from_numpy(expected), dtype, f"{case.name}: the output of {where}", "the oracle's")
    if not case.training:
        return
    leaves = [tensor.requires_grad_() for tensor in (*wide.values(), *params.values())]
    reference = attend(query, key, value, case.attention, params=params, kernel="plain")
    wanted = torch.autograd.grad(reference, leaves, work.cotangent.double())
    for name, ours, theirs in zip((*wide, *params), gradients, wanted, strict=True):
        what = f"{case.name}: the gradient of {name} of {where}"
        check_close(ours, theirs, dtype, what, "the plain kernel's in float64")


def check_same(ours: Sequence[Tensor], theirs: Sequence[Tensor], dtype: torch.dtype, what: str, peer: str) -> None:
    """Compare the output of ours with a peer's, and in training the gradient of the first input.

    A peer that computes more queries is compared in the last ones.
    """
    for name, own, other in zip(("output", "gradient of the first input"), ours, theirs, strict=False):
        last = other[..., other.shape[-2] - own.shape[-2] :, :]
        check_close(own, last, dtype, f"{what}: the {name}", f"{peer}'s")


def check_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str, whose: str) -> None:
    """Raise DisagreementError where a tensor is not what it should be."""
    apart = difference(actual, expected)
    if not apart <= ALLOWED[dtype]:
        raise DisagreementError(f"{what} is not {whose}: {apart:.1e} apart and {ALLOWED[dtype]:.1e} allowed")


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a part of the largest number expected; NaN where any number is."""
    if actual.shape != expected.shape:
        raise DisagreementError(f"shapes {list(actual.shape)} and {list(expected.shape)} should be the same")
    ours, theirs = actual.detach().double(), expected.detach().double()
    largest = theirs.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((ours - theirs).abs().max() / largest)
