"""What an attention layer of a real model reads: queries and keys before rotation, values, and its weights.

The tensors are taken where the model hands them to its attention function: after its biases and its own norms of
queries and keys, which a hook on a projection would miss. There they are rotated, and the cos and sin that the
attention module was given turn them back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.catalog.configs import layer_specs
from polyhead.errors import ShapeError, UnknownNameError, UnsupportedError, require_extra
from polyhead.hf.load import Loaded
from polyhead.oracle import attend
from polyhead.spec import AttentionSpec, DynamicNTKScaling, LayerSpec, LongRopeScaling, Rotary

_NAME = "polyhead_capture"
_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")  # those whose attention functions are alike
_TOLERANCE = 1e-5  # of weights, where scores are of moderate size; see _rounding
_MAX_WEIGHT_BYTES = 2 << 30
_BLOCK = 256  # queries checked at a time, so that the check needs less memory than the weights

# The registry of attention functions and a model's choice among them are shared by all threads.
_ONE_AT_A_TIME = threading.Lock()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Captured:
    """What one attention layer read and computed for one text.

    Attributes:
        query: ``[num_heads, tokens, head_dim]``, float32, before rotation and after the model's own norm.
        key: ``[num_kv_heads, tokens, head_dim]``, the same.
        value: ``[num_kv_heads, tokens, head_dim]``.
        weights: ``[num_heads, tokens, tokens]``, the model's own eager attention.
        tokens: The text's tokens, as the tokenizer writes them.
        spec: What the layer is.
        layer: Its number, counted from 0.
        num_layers: How many layers the model has.
        max_error: Largest difference between ``weights`` and those that the oracle computes from ``query``,
            ``key`` and ``spec``.
    """

    query: NDArray[np.float32] = dataclasses.field(repr=False)
    key: NDArray[np.float32] = dataclasses.field(repr=False)
    value: NDArray[np.float32] = dataclasses.field(repr=False)
    weights: NDArray[np.float32] = dataclasses.field(repr=False)
    tokens: tuple[str, ...]
    spec: LayerSpec
    layer: int
    num_layers: int
    max_error: float


def capture(loaded: Loaded, text: str, *, layer: int, check: bool = True) -> Captured:
    """Let a model read a text, and return what one of its attention layers read of it.

    The pass ends at that layer. It costs the eager attention of the layers up to it, and one float64 attention
    for ``max_error``.

    ::

        read = capture(load("smollm2"), "The cat sat on the mat", layer=9)
        read.tokens  # ('The', 'Ġcat', 'Ġsat', 'Ġon', 'Ġthe', 'Ġmat')
        read.query.shape  # (9, 6, 64)

    Args:
        loaded: The model, from `polyhead.hf.load`.
        text: What it reads, as one sequence.
        layer: Which layer, from 0; negative numbers count from the last.
        check: Whether a ``max_error`` above 1e-5 is an error (above the model's own float32 rounding, where
            large scores or a long text make that more).

    Returns:
        The layer's tensors, of all heads.

    Raises:
        UnknownNameError: If the model has no such layer.
        ShapeError: If the text has no token, more than the model has positions for, or so many that the weights
            take more than 2 GiB.
        CheckpointError: If the tokenizer gives a token that the model has no embedding for.
        UnsupportedError: If the model's type is not followed here or its layers cannot be expressed, if it is adopted,
            if the text passes the trained length of a scaling that depends on the query's position, or if the spec
            does not give the model's weights.
    """
    specs = check_capturable(loaded.config)
    _check_not_adopted(loaded)
    layer = _layer_number(layer, len(specs))
    attention = specs[layer].attention
    numbers, tokens = _tokenized(loaded, text)
    _check_length(len(tokens), attention, loaded.model.config.max_position_embeddings)
    seen = _run(loaded.model, numbers, layer)
    query, key = _unrotated(seen.query, seen.rotation), _unrotated(seen.key, seen.rotation)
    max_error = _largest_difference(query, key, seen.value, seen.weights, attention)
    tolerance = max(_TOLERANCE, _rounding(query, key, attention.scale))
    if check and not max_error <= tolerance:  # a NaN is no agreement
        raise UnsupportedError(
            f"config.json of {loaded.name} as read here does not describe layer {layer}: the model's weights "
            f"differ from its spec's by {max_error:.1e}, of which rounding explains {tolerance:.1e}"
        )
    arrays = {"query": query, "key": key, "value": seen.value, "weights": seen.weights}
    single = {name: array.astype(np.float32) for name, array in arrays.items()}
    return Captured(tokens=tokens, spec=specs[layer], layer=layer, num_layers=len(specs), max_error=max_error, **single)


def check_capturable(config: Mapping[str, Any]) -> list[LayerSpec]:
    """Raise unless the layers of a model can be captured, as far as its config.json tells.

    Args:
        config: The fields of its config.json.

    Returns:
        What each of its layers is.

    Raises:
        UnsupportedError: If its model type is not one of those that `capture` follows, or if its attention cannot be
            expressed; see `polyhead.catalog.configs.layer_specs`.
        CheckpointError: If a field that is needed is missing, or if the numbers do not fit together.
    """
    model_type = config.get("model_type")
    if model_type is not None and model_type not in _MODEL_TYPES:
        known = ", ".join(_MODEL_TYPES)
        raise UnsupportedError(f"model_type={model_type!r} is not captured; what is captured: {known}")
    return layer_specs(config)


def _check_not_adopted(loaded: Loaded) -> None:
    from polyhead.hf.families import Adopted

    if any(isinstance(module, Adopted) for module in loaded.model.modules()):
        raise UnsupportedError(
            f"{loaded.name} is adopted, and capture follows transformers' own modules; "
            "polyhead.hf.release(loaded.model) first"
        )


def _layer_number(layer: int, num_layers: int) -> int:
    number = operator.index(layer)
    if not -num_layers <= number < num_layers:
        raise UnknownNameError(
            f"there is no layer {number} among {num_layers}; use 0 to {num_layers - 1}, "
            f"or -1 to -{num_layers} from the last"
        )
    return number % num_layers


def _tokenized(loaded: Loaded, text: str) -> tuple[list[int], tuple[str, ...]]:
    numbers = loaded.token_ids(text)
    return numbers, tuple(loaded.tokenizer.convert_ids_to_tokens(numbers))


def _check_length(num_tokens: int, spec: AttentionSpec, max_seq_len: int) -> None:
    scaling = spec.position.scaling if isinstance(spec.position, Rotary) else None
    if isinstance(scaling, DynamicNTKScaling | LongRopeScaling) and num_tokens > scaling.original_max_seq_len:
        raise UnsupportedError(
            f"the text has {num_tokens} tokens; past the trained {scaling.original_max_seq_len}, transformers "
            f"rotates all of a call alike and {type(scaling).__name__} goes by each query's own position, so "
            "the two differ; give a shorter text"
        )
    if num_tokens > max_seq_len:
        raise ShapeError(f"the text has {num_tokens} tokens and the model positions for {max_seq_len}; shorten it")
    longest = math.isqrt(_MAX_WEIGHT_BYTES // (4 * spec.num_heads))
    if num_tokens > longest:
        raise ShapeError(
            f"the text has {num_tokens} tokens; the weights of {spec.num_heads} heads fit into "
            f"{_MAX_WEIGHT_BYTES >> 30} GiB for at most {longest}; shorten it"
        )


# --- the pass -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the attention function was given and gave, of the only sequence; all float64.

    Attributes:
        query: ``[num_heads, tokens, head_dim]``, rotated.
        key: ``[num_kv_heads, tokens, head_dim]``, rotated.
        value: ``[num_kv_heads, tokens, head_dim]``.
        weights: ``[num_heads, tokens, tokens]``.
        rotation: cos and sin, each ``[tokens, rotary_dim]``; None where nothing rotates.
    """

    query: NDArray[np.float64]
    key: NDArray[np.float64]
    value: NDArray[np.float64]
    weights: NDArray[np.float64]
    rotation: tuple[NDArray[np.float64], NDArray[np.float64]] | None


class _Stop(Exception):  # noqa: N818 - no error: it ends a pass that has done its work
    """Ends a forward pass once its layer has been seen."""


class _Recorder:
    """Stands in for the attention function, and before the attention module, of one layer."""

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.rotation: tuple[Any, Any] | None = None
        self.seen: _Seen | None = None

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the rotation, which the module is given and its attention function is not."""
        self.rotation = kwargs.get("position_embeddings")

    def attend(self, module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Compute the module's eager attention, and at the wanted layer record it and stop."""
        eager = sys.modules[type(module).__module__].eager_attention_forward
        output, weights = eager(module, query, key, value, mask, **kwargs)
        if module.layer_idx != self.layer:
            return output, weights
        cos_sin = None if self.rotation is None else (_array(self.rotation[0]), _array(self.rotation[1]))
        self.seen = _Seen(
            query=_array(query), key=_array(key), value=_array(value), weights=_array(weights), rotation=cos_sin
        )
        raise _Stop


def _array(tensor: Any) -> NDArray[np.float64]:
    return np.asarray(tensor[0].double().cpu().numpy())


def _run(model: Any, numbers: list[int], layer: int) -> _Seen:
    torch = require_extra("torch", "hf", "capturing a layer's input")
    recorder = _Recorder(layer)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        stack.enter_context(torch.no_grad())
        stack.enter_context(_attention_function(model, recorder.attend))
        for module in model.modules():
            if getattr(module, "layer_idx", None) == layer:
                hook = module.register_forward_pre_hook(recorder.before, with_kwargs=True)
                stack.callback(hook.remove)
        with contextlib.suppress(_Stop):
            model(input_ids=torch.tensor([numbers], device=model.device), use_cache=False)
    assert recorder.seen is not None
    return recorder.seen


@contextlib.contextmanager
def _attention_function(model: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Let a model call a function for its attention, and nothing else of it change."""
    modeling = require_extra("transformers.modeling_utils", "hf", "capturing a layer's input")
    masking = require_extra("transformers.masking_utils", "hf", "capturing a layer's input")
    functions, masks = modeling.ALL_ATTENTION_FUNCTIONS, masking.ALL_MASK_ATTENTION_FUNCTIONS
    before = model.config._attn_implementation
    functions.register(_NAME, function)
    masks.register(_NAME, masks["eager"])  # a function registered without a mask gets None, not a causal one
    try:
        model.set_attn_implementation(_NAME)
        yield
    finally:
        model.set_attn_implementation(before)
        for registry in (functions, masks):  # which have no way of their own to forget a name
            registry._global_mapping.pop(_NAME)


# --- what it means --------------------------------------------------------------------------------


def _unrotated(
    rows: NDArray[np.float64], rotation: tuple[NDArray[np.float64], NDArray[np.float64]] | None
) -> NDArray[np.float64]:
    """Turn rows back: rotated = x·cos + half(x)·sin, and half(half(x)) = −x.

    Dividing by cos² + sin² also undoes the factor on cos and sin that YaRN and LongRoPE have.
    """
    if rotation is None:
        return rows
    cos, sin = rotation
    width = cos.shape[-1]
    turned, rest = rows[..., :width], rows[..., width:]
    first, second = np.split(turned, 2, axis=-1)
    half = np.concatenate([-second, first], axis=-1)
    return np.concatenate([(turned * cos - half * sin) / (cos**2 + sin**2), rest], axis=-1)


def _largest_difference(
    query: NDArray[np.float64],
    key: NDArray[np.float64],
    value: NDArray[np.float64],
    weights: NDArray[np.float64],
    spec: AttentionSpec,
) -> float:
    """Return how far the model's weights are from those of its spec."""
    worst = np.float64(0.0)
    for start in range(0, query.shape[-2], _BLOCK):
        rows = slice(start, min(start + _BLOCK, query.shape[-2]))
        positions = np.arange(rows.start, rows.stop)
        _, again = attend(
            query[None, :, rows], key[None], value[None], spec, query_positions=positions, return_weights=True
        )
        worst = np.maximum(worst, np.abs(again[0] - weights[:, rows]).max())  # a NaN stays one
    return float(worst)


def _rounding(query: NDArray[np.float64], key: NDArray[np.float64], scale: float) -> float:
    """Return how far a model's float32 can take its weights from exact ones.

    A score is off by its own rounding, which matters where biases make scores large (Qwen2), and by its angles'
    rounding, which grows with the position. Differences measured on real layers stay below a fifth of this.
    """
    query_norm, key_norm = (float(np.linalg.norm(rows, axis=-1).max()) for rows in (query, key))
    num_tokens: int = query.shape[-2]
    return math.ldexp(scale * query_norm * key_norm, -24) * (1 + num_tokens / 16)
