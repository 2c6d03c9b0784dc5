"""A spec in a notebook: its pattern as a picture, what its choices mean, and the page on which they can be changed."""

from __future__ import annotations

from typing import Any

from polyhead.errors import require_extra
from polyhead.page import Answer
from polyhead.page.notebook import bundle, picture, table
from polyhead.spec.attention import AttentionSpec, LayerSpec
from polyhead.spec.composed import composed, parts_of, picture_of
from polyhead.spec.pattern import Pattern
from polyhead.spec.words import CHOICES, cached, learned, meanings

LONGEST = 240
"""Characters of a choice that are shown; a table of links may have thousands."""

SEEN, HIDDEN = "#007a5a", "#e6e6e6"

ASKED = {"q_len": 1, "kv_len": 4096, "dtype": "bfloat16", "device": "cpu", "needs_grad": False}
"""What is asked besides the four choices, as the page does at first."""


def of_spec(spec: AttentionSpec) -> dict[str, str]:
    """Return a spec's forms for a notebook, by media type."""
    return bundle(repr(spec), _still(spec, _rows(spec)), *_live(spec))


def of_layer(layer: LayerSpec) -> dict[str, str]:
    """Return a layer's forms for a notebook, by media type: those of its four choices, and what it has besides."""
    spec = layer.attention
    has = {"qkv_bias": layer.qkv_bias, "out_bias": layer.out_bias, "qk_norm": layer.qk_norm}
    has["latent_norm"] = bool(layer.latent_norm)
    source = "its own sequence" if layer.source == "self" else f"another sequence, of width {layer.context_dim}"
    rows = [
        *_rows(spec, layer.source)[:-1],  # a layer learns more than its four choices
        ("width", str(layer.embed_dim), "of its input and of its output"),
        ("source", repr(layer.source), f"keys and values come from {source}"),
        ("besides", ", ".join(name for name, is_there in has.items() if is_there) or "nothing", ""),
        ("learned", f"{layer.parameters:,} numbers", learned(layer.parameter_shapes())),
    ]
    return bundle(repr(layer), _still(spec, rows), *_live(spec))


def draw(pattern: Pattern) -> Any:
    """Draw which keys each query sees.

    Args:
        pattern: The pattern.

    Returns:
        The matplotlib ``Figure``.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    figure = require_extra("matplotlib.figure", "plot", "a plot").Figure(figsize=(3.0, 3.2), layout="constrained")
    colours = require_extra("matplotlib.colors", "plot", "a plot").ListedColormap([HIDDEN, SEEN])
    axes = figure.subplots()
    shown = picture_of(pattern)
    grid = [[int(cell) for cell in row] for row in shown["allowed"]]
    end = shown["size"] * shown["step"]
    axes.imshow(grid, cmap=colours, vmin=0, vmax=1, extent=(0, end, end, 0))
    axes.set_title(f"keys that each query sees{' in head 0' if pattern.per_head else ''}", fontsize=9)
    axes.set_xlabel("key", fontsize=8)
    axes.set_ylabel("query", fontsize=8)
    axes.set_xticks(range(0, end + 1, 8 * shown["step"]))
    axes.set_yticks(range(0, end + 1, 8 * shown["step"]))
    axes.tick_params(labelsize=7)
    axes.grid(color="white", linewidth=0.4)
    return figure


def _still(spec: AttentionSpec, rows: list[tuple[str, str, str]]) -> str:
    alt = f"which keys each query sees: {meanings(spec)['pattern']}"
    return picture(lambda: draw(spec.pattern), alt) + table(("choice", "what", "that is"), rows, "Attention as a spec")


def _rows(spec: AttentionSpec, source: str = "self") -> list[tuple[str, str, str]]:
    means = meanings(spec)
    rows = [(choice, _short(repr(getattr(spec, choice))), means[choice]) for choice in CHOICES]
    return [*rows, ("cached", cached(spec, source), ""), ("learned", learned(spec.parameter_shapes()), "")]


def _live(spec: AttentionSpec) -> tuple[dict[str, Any], list[Answer]]:
    """Return what the live page shows, and the one answer that it has."""
    asked = {"spec": parts_of(spec), **ASKED}
    return {"screen": "compose", "compose": asked}, [Answer(path="compose", body=asked, content=composed(spec))]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
