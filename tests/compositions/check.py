"""What must hold for one combination: `attend` equals the oracle, and an undefined one is refused."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import polyhead as ph
from polyhead.kernels import select
from polyhead.kernels.common import Case
from polyhead.spec.rules import Choices, refusal
from tests.compositions.choices import Combination, Sizes
from tests.compositions.situations import SITUATIONS, nothing_given
from tests.compositions.slopes import assert_slope, is_well_posed
from tests.inputs import Array, Inputs
from tests.tolerances import assert_close


def check(combination: Combination, *, apart: bool = True) -> None:
    """Check one combination at sizes and inputs that its name draws; see `check_gradients`."""
    rng = np.random.default_rng(zlib.crc32(str(combination).encode()))
    choices = combination.choices(Sizes.draw(rng))
    if refusal(choices) is None:
        check_legal(ph.AttentionSpec(**fields(choices)), rng, apart=apart)
    else:
        check_refused(choices)


def fields(choices: Choices) -> dict[str, Any]:
    return {name: getattr(choices, name) for name in ("storage", "position", "pattern", "weighting")}


def check_refused(choices: Choices) -> None:
    """An undefined combination raises SpecError with its rule's reason, and what it proposes instead is legal."""
    found = refusal(choices)
    assert found is not None
    with pytest.raises(ph.SpecError, match=re.escape(found.reason)):
        ph.AttentionSpec(**fields(choices))
    assert refusal(found.nearest) is None


def check_legal(spec: ph.AttentionSpec, rng: np.random.Generator, *, apart: bool) -> None:
    """Check a spec in two situations, once with gradients."""
    situation = SITUATIONS[rng.integers(len(SITUATIONS))]
    check_forward(_posed(nothing_given, spec, rng))
    inputs = _posed(situation, spec, rng)
    check_forward(inputs)
    check_gradients(inputs, rng, apart=apart)


def _posed(situation: Callable[..., Inputs], spec: ph.AttentionSpec, rng: np.random.Generator) -> Inputs:
    draws = (situation(spec, rng) for _ in range(1000))
    return next(inputs for inputs in draws if is_well_posed(inputs))


def check_forward(inputs: Inputs) -> None:
    """Output and weights equal the oracle's, in float64 and float32, with every kernel that can, once."""
    output, weights = inputs.oracle(return_weights=True)
    for dtype in (torch.float64, torch.float32):
        assert_close(inputs.attend(dtype), output, dtype)
        beside, ours = inputs.attend(dtype, return_weights=True)
        assert_close(beside, output, dtype, what="output beside weights")
        assert_close(ours, weights, dtype, what="weights")
    wide = kernels_for(inputs, torch.float64, weights=False)
    narrow = [kernel for kernel in kernels_for(inputs, torch.float32, weights=False) if kernel not in wide]
    for dtype, kernels in ((torch.float64, wide), (torch.float32, narrow)):
        for kernel in kernels:
            assert_close(inputs.attend(dtype, kernel=kernel), output, dtype, what=f"{kernel}'s output")
    for kernel in kernels_for(inputs, torch.float64, weights=True):
        _, ours = inputs.attend(torch.float64, kernel=kernel, return_weights=True)
        assert_close(ours, weights, torch.float64, what=f"{kernel}'s weights")


def kernels_for(inputs: Inputs, dtype: torch.dtype, *, weights: bool) -> list[str]:
    """Return the kernels that run these inputs, also those that `auto` passes over."""
    q_len, kv_len = (inputs.learned[name].shape[2] for name in ("query", "key"))
    given = {"key_mask": "key_mask" in inputs.given, "segments": "segments" in inputs.given}
    aligned = not {"query_positions", "key_positions"} & set(inputs.given)
    case = Case(spec=inputs.spec, q_len=q_len, kv_len=kv_len, dtype=dtype, aligned=aligned, weights=weights, **given)
    return [kernel.name for kernel in select.KERNELS if kernel.refuse(case) is None]


def check_gradients(inputs: Inputs, rng: np.random.Generator, *, apart: bool) -> None:
    """Check gradients against the oracle's slope along a random direction; float32's equal float64's.

    Args:
        inputs: What is differentiated at.
        rng: Draws the directions.
        apart: Whether each tensor moves alone, which says whose gradient is wrong, or all of them together, which takes
            the oracle a fraction of the time.
    """
    cotangent = rng.standard_normal(inputs.oracle().shape)
    exact, single = (gradients(inputs, cotangent, dtype) for dtype in (torch.float64, torch.float32))
    directions = {name: rng.standard_normal(gradient.shape) for name, gradient in exact.items()}
    for names in [[name] for name in exact] if apart else [list(exact)]:

        def along(step: float, names: list[str] = names) -> float:
            moved = inputs.changing(**{name: inputs.learned[name] + step * directions[name] for name in names})
            return float((cotangent * moved.oracle()).sum())

        claimed = sum((exact[name] * directions[name]).sum() for name in names)
        assert_slope(claimed, along, inputs.spec, what=", ".join(names))
    # float32 errs by a part of the terms that are summed, and the largest gradient says how large those are
    size = max(1.0, *(np.abs(gradient).max(initial=0.0) for gradient in exact.values()))
    for name, ours in exact.items():
        assert_close(single[name] / size, ours / size, torch.float32, what=f"float32 gradient of {name}")


def gradients(inputs: Inputs, cotangent: Array, dtype: torch.dtype) -> dict[str, Array]:
    """Return the gradient of ``sum(cotangent · output)`` in every learned tensor."""
    leaves = inputs.tensors(dtype, requires_grad=True)
    output = inputs.attend(leaves)
    grads = torch.autograd.grad(output, list(leaves.values()), torch.tensor(cotangent, dtype=dtype))
    return {name: grad.double().numpy() for name, grad in zip(leaves, grads, strict=True)}
