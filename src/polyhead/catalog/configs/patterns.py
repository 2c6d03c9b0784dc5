"""Which pairs may meet in each layer: windows, and the types that a config gives its layers."""

from __future__ import annotations

from polyhead.catalog.configs.fields import Config, in_the_way, listed
from polyhead.errors import CheckpointError
from polyhead.spec import Causal, Pattern, SlidingWindow
from polyhead.spec.choice import as_int

LAYER_TYPES = FULL, SLIDING = "full_attention", "sliding_attention"
WINDOWS = ("none", "all", "some", "alternate")
"""Which layers of a model type may slide: none; all, if there is a window; Qwen's, which are given or begin at
``max_window_layers``; or Gemma 2's, which are given or else every second one, beginning with the first."""


def patterns(config: Config, num_layers: int, windows: str) -> list[Pattern]:
    """Return each layer's pattern.

    Args:
        config: The config.
        num_layers: Number of layers.
        windows: One of `WINDOWS`.

    Returns:
        One causal pattern per layer.

    Raises:
        CheckpointError: If a layer slides and there is no window, or if types and layers differ in number.
        UnsupportedError: If a layer has another type.
    """
    window = _window(config, windows)
    kinds = _layer_types(config, num_layers, windows, slides=window is not None)
    if window is None and SLIDING in kinds:
        raise CheckpointError(f"layer_types has {SLIDING!r}, and config.json gives no window")
    return [SlidingWindow.causal(window) if window and kind == SLIDING else Causal() for kind in kinds]


def _window(config: Config, windows: str) -> int | None:
    """Return how many tokens a sliding layer sees, its own included, or None if no layer slides."""
    if windows == "none":
        return None
    if windows == "some" and not config.need("use_sliding_window"):
        return None
    window = config.need_stated("sliding_window")
    return None if window is None else as_int("sliding_window", window, at_least=1)


def _layer_types(config: Config, num_layers: int, windows: str, *, slides: bool) -> list[str]:
    given = config.get("layer_types")
    if given is not None and (not isinstance(given, list) or len(given) != num_layers):
        raise CheckpointError(f"layer_types={given!r} does not give each of the {num_layers} layers its type")
    if strange := [kind for kind in given or () if kind not in LAYER_TYPES]:
        raise in_the_way("layer_types", f"{strange[0]!r} is not read; what is read: {listed(LAYER_TYPES)}")
    if windows == "some":
        return given or _split(config, num_layers, slides=slides)
    if windows == "alternate":
        return given or [(SLIDING, FULL)[layer % 2] for layer in range(num_layers)]
    kind = SLIDING if slides else FULL
    if given is not None and set(given) != {kind}:
        raise in_the_way("layer_types", f"a {config.model_type} without types runs every layer as {kind!r}")
    return [kind] * num_layers


def _split(config: Config, num_layers: int, *, slides: bool) -> list[str]:
    """Return Qwen's layer types where a file has none: the first ``max_window_layers`` do not slide."""
    first = as_int("max_window_layers", config.need("max_window_layers"), at_least=0) if slides else num_layers
    return [FULL if layer < first else SLIDING for layer in range(num_layers)]
