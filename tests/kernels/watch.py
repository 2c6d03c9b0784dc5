"""What a computation makes and does: the size of its tensors, and its multiplications."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


def tensors_in(*values: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors that an operation takes or makes; PyTorch's own way through takes longer than the operation."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(*value)
        elif isinstance(value, dict):
            yield from tensors_in(*value.values())


class NothingAsLargeAs(TorchDispatchMode):
    """Fails where an operation makes a tensor, or a view of one, of so many elements; counts the operations.

    What it is given counts as well: memory that an operation has enlarged in place, or that came from NumPy.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in tensors_in(made, args, kwargs):
            size = tensor.untyped_storage().nbytes() // tensor.element_size()
            assert size < self.limit, f"{func} makes a tensor {list(tensor.shape)}"
        return made


class NothingNewAsLargeAs(TorchDispatchMode):
    """Fails where an operation takes memory of its own of so many bytes; views and what is there already are none."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = {x.untyped_storage().data_ptr() for x in tensors_in(args, kwargs)}
        made = func(*args, **(kwargs or {}))
        for tensor in tensors_in(made):
            if tensor.untyped_storage().data_ptr() not in there:
                size = tensor.untyped_storage().nbytes()
                assert size < self.limit, f"{func} takes {size:,} bytes for a tensor {list(tensor.shape)}"
        return made


def multiplications(run: Callable[[], Any]) -> int:
    """Return how many multiplications of matrix products a computation makes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2  # each with its addition
