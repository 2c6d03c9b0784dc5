"""PyTorch's FlexAttention: whether it is there, and compiled once.

Uncompiled it forms the whole matrix of scores, so it is never called that way but in tests.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

MOST_FORMS = 256
"""How many forms of it one process may need: each pattern, bias and dtype is another. PyTorch's own limit is 8."""


def missing() -> str | None:
    """Return why FlexAttention cannot be called, or None."""
    try:
        from torch.nn.attention.flex_attention import AuxRequest  # noqa: F401 - what came last of all that is used
    except ImportError:
        return f"PyTorch {torch.__version__} has no FlexAttention that returns log-sum-exps; 2.9 has"
    if importlib.util.find_spec("triton") is None:
        return "FlexAttention is compiled with triton, which is not installed"
    return None


@functools.cache
def compiled() -> Callable[..., Any]:
    """Return ``torch.compile(flex_attention)``; the first call for each form takes seconds.

    Past its limit of forms, PyTorch would run it uncompiled without a word; here it raises.
    """
    from torch.nn.attention.flex_attention import flex_attention

    attention = torch.compile(flex_attention, fullgraph=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=MOST_FORMS):
            return attention(*args, **kwargs)

    return call
