"""Which kernel runs, decided by rule before any tensor is touched, and why not the others."""

from __future__ import annotations

import dataclasses

import torch

from polyhead.errors import UnsupportedError, unknown_name
from polyhead.kernels import absorbed, blockwise, decode, decode_numba, dense, flex, gathered, linear, plain, tiled
from polyhead.kernels.common import Case, Kernel
from polyhead.spec import AttentionSpec

KERNELS: tuple[Kernel, ...] = (
    linear.KERNEL,
    absorbed.KERNEL,
    decode_numba.KERNEL,
    decode.KERNEL,
    dense.KERNEL,
    flex.KERNEL,
    gathered.KERNEL,
    tiled.KERNEL,
    blockwise.KERNEL,
    plain.KERNEL,
)
"""Every kernel, the preferred first. All of them compute the same function; what the others refuse, the last takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Which kernel runs a case, and why each other one does not.

    Attributes:
        kernel: The name of the kernel that `auto` picks.
        summary: How it computes.
        others: For each other kernel, by name, why it was not picked.
    """

    kernel: str
    summary: str
    others: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.kernel}: {self.summary}"]
        return "\n".join(lines + [f"not {name}: {reason}" for name, reason in self.others.items()])


def choose(case: Case, kernel: str = "auto") -> Kernel:
    """Return the kernel that runs a case.

    Args:
        case: What is asked.
        kernel: A kernel's name, or ``"auto"`` for the first that takes the case.

    Returns:
        The kernel.

    Raises:
        UnknownNameError: If no kernel has that name.
        UnsupportedError: If the kernel asked for does not take the case; it never falls back to another.
    """
    if kernel == "auto":
        for one in KERNELS:
            if one.refuse(case) is None and one.pass_over(case) is None:
                return one
        reasons = "; ".join(f"{k.name}: {k.refuse(case) or k.pass_over(case)}" for k in KERNELS)
        raise UnsupportedError(f"no kernel runs this ({reasons})")
    named = next((k for k in KERNELS if k.name == kernel), None)
    if named is None:
        raise unknown_name("kernel", kernel, ["auto", *(k.name for k in KERNELS)])
    if (reason := named.refuse(case)) is not None:
        raise UnsupportedError(
            f"kernel={kernel!r} does not run this: {reason}; use kernel='auto', which picks {choose(case).name!r}"
        )
    return named


def explain_case(case: Case) -> Explanation:
    """Return which kernel `auto` picks for a case, and why not the others."""
    chosen = choose(case)
    passed_over = f"it would run, and auto prefers {chosen.name}"
    others = {k.name: k.refuse(case) or k.pass_over(case) or passed_over for k in KERNELS if k is not chosen}
    return Explanation(kernel=chosen.name, summary=chosen.summary, others=others)


def explain(
    spec: AttentionSpec,
    *,
    q_len: int,
    kv_len: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    needs_grad: bool = False,
    **asked: bool,
) -> Explanation:
    """Say which kernel `attend` would pick, and why not the others.

    Args:
        spec: The mechanism.
        q_len: Number of queries.
        kv_len: Number of keys.
        dtype: Dtype of the inputs.
        device: Where they are.
        needs_grad: Whether a gradient will be asked for.
        **asked: What else is asked, as in `polyhead.kernels.common.Case`: ``aligned`` (default True),
            ``key_mask``, ``segments``, ``dropout``, ``weights``, ``state``, ``compiled``.

    Returns:
        The explanation; ``str()`` of it is for reading.
    """
    kind = torch.device(device).type
    case = Case(spec=spec, q_len=q_len, kv_len=kv_len, dtype=dtype, device=kind, needs_grad=needs_grad, **asked)
    return explain_case(case)
