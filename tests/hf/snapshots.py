"""All that must be as it was once a model is released, or if it was not adopted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bits(tensor: Tensor) -> bytes:
    return b"" if tensor.is_meta else tensor.detach().flatten().view(torch.uint8).numpy().tobytes()


def forward(model: Any) -> bytes | str:
    """Return a model's logits, or what it raises where a part of it is missing or does not fit."""
    numbers = torch.arange(12).reshape(2, 6)
    try:
        with torch.no_grad():
            return bits(model(numbers, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])).logits)
    except (AttributeError, RuntimeError) as error:
        return type(error).__name__


def snapshot(model: Any) -> dict[str, Any]:
    """Return all that a refused call must leave alone."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "modules": {name: (id(module), module.training) for name, module in model.named_modules()},
        "tensors": {name: (id(tensor), bits(tensor)) for name, tensor in tensors},
        "state": {name: bits(tensor) for name, tensor in model.state_dict().items()},
        "config": (id(model.config), model.config._attn_implementation, model.config.to_dict()),
        "forward": forward(model),
    }
