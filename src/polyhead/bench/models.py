"""A whole model decoding, token by token: adopted, and as transformers runs it, over caches of the same content."""

from __future__ import annotations

import copy
import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from polyhead.bench.case import Case
from polyhead.bench.work import Outputs, Run
from polyhead.hf import adopt, load, register
from polyhead.hf.caches import layer_of

NOTHING = "polyhead-bench-nothing"
"""The name under which transformers finds attention that returns at once."""

ALLOWED = 1e-3
"""Largest difference of logits, as a part of the largest: every layer adds what it rounds otherwise."""

TITLES = {
    "transformers": "transformers, its default cache",
    "transformers-static": "transformers, its static cache",
    "implementation": "transformers, attn_implementation='polyhead'",
    "floor": "the model, attention that returns at once",
}


class Timed(NamedTuple):
    """A model's contenders.

    Attributes:
        ours: Runs the adopted model for a token.
        peers: What else runs one, by name.
        bytes_read: Bytes that a token cannot but read: all weights, and what is cached.
    """

    ours: Run
    peers: dict[str, Run]
    bytes_read: float


def build(case: Case) -> Timed:
    """Load a case's model, and fill a cache for each way to run it with the same random keys and values.

    Args:
        case: A case with a model.

    Returns:
        What is timed; each call takes its token back.
    """
    assert case.model is not None
    model, past = load(case.model, attention="sdpa").model, case.length - case.q_len
    cache_utils = importlib.import_module("transformers.cache_utils")
    shared = {id(parameter): parameter for parameter in model.parameters()}

    def alike(implementation: str) -> Any:
        other = copy.deepcopy(model, dict(shared))
        other.set_attn_implementation(implementation)
        return other

    adopted, held = adopt(alike("sdpa")), cache_utils.DynamicCache(config=model.config)
    layers = [module.attention for module in adopted.modules() if hasattr(module, "attention")]
    static = cache_utils.StaticCache(config=model.config, max_cache_len=case.length)
    caches = {"transformers": cache_utils.DynamicCache(config=model.config), "transformers-static": static}
    caches["implementation"] = cache_utils.DynamicCache(config=model.config)
    for index, layer in enumerate(layers):
        ours = layer_of(held, index, layer, 1).cache
        shapes = (layer.spec.attention.input_shapes()[name] for name in ("key", "value"))
        ours.append(*(torch.randn(1, shape[0], past, shape[1]) for shape in shapes if shape))
        stored = ours.saved_tensors()
        for cache in caches.values():
            cache.update(stored["key"].clone(), stored["value"].clone(), index)
    register()
    _register_nothing()
    peers = {
        "transformers": _run(alike("sdpa"), caches["transformers"], past),
        "transformers-static": _run(alike("sdpa"), static, past),
        "implementation": _run(alike("polyhead"), caches["implementation"], past),
        "floor": _run(alike(NOTHING), None, past),
    }
    cached = sum(layer.cache.used_bytes for layer in held.layers)
    weights = sum(parameter.nbytes for parameter in shared.values())
    return Timed(_run(adopted, held, past), peers, float(cached + weights))


def _run(model: nn.Module, cache: Any, past: int) -> Run:
    """Return a call that runs a model for the token after a cache, and takes it back."""
    token, position = torch.ones(1, 1, dtype=torch.int64), torch.tensor([[past]])

    def run() -> Outputs:
        with torch.no_grad():
            logits: Tensor = model(
                input_ids=token, position_ids=position, past_key_values=cache, use_cache=cache is not None
            ).logits
        _take_back(cache, past)
        return (logits,)

    return run


def _take_back(cache: Any, past: int) -> None:
    if cache is None:
        return
    for layer in cache.layers:
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length.fill_(past)
        else:
            layer.crop(past - layer.get_seq_length())


def _register_nothing() -> None:
    """Give transformers an attention function that returns its queries, and no mask for it."""
    transformers = importlib.import_module("transformers")
    masks = importlib.import_module("transformers.masking_utils")

    def nothing(module: nn.Module, query: Tensor, *given: Any, **options: Any) -> tuple[Tensor, None]:
        return query.transpose(1, 2).contiguous(), None

    def no_mask(*given: Any, **options: Any) -> None:
        return None

    transformers.AttentionInterface.register(NOTHING, nothing)
    masks.AttentionMaskInterface.register(NOTHING, no_mask)
