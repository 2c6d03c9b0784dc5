"""The queries, keys and values of a real model's layer, as inputs for a comparison."""

from __future__ import annotations

import os
from typing import Any

from polyhead.compare.inputs import Cross, Inputs
from polyhead.spec import AttentionSpec, Softmax


def model_inputs(model: Any, text: str, *, layer: int, second_text: str | None, bare: bool) -> tuple[Inputs, str]:
    """Let a model read a text and return a layer's heads.

    Args:
        model: What `polyhead.hf.load` takes, or what it returned.
        text: What the model reads.
        layer: Number of the layer.
        second_text: A second text, for cross-attention.
        bare: Whether to leave the model's own position and pattern out.

    Returns:
        The inputs, and a line that says what they are.
    """
    from polyhead.hf import capture, load
    from polyhead.hf.capture import check_capturable

    loaded = model
    if isinstance(model, str | os.PathLike):  # refused, if it is, before its weights are read
        loaded = load(model, check=lambda config, _: check_capturable(config))
    read = capture(loaded, text, layer=layer)
    cross = None
    if second_text is not None:
        second = capture(loaded, second_text, layer=layer)
        cross = Cross(read.query, second.key, second.value, second.tokens)
    own = read.spec.attention
    base = own
    if bare:
        scale = own.weighting.scale if isinstance(own.weighting, Softmax) else None
        base = AttentionSpec(storage=own.storage, weighting=Softmax(scale=scale))
    inputs = Inputs(
        tokens=read.tokens,
        query=read.query,
        key=read.key,
        value=read.value,
        base=base,
        cross=cross,
        own=own,
        layer=read.layer,
        num_layers=read.num_layers,
    )
    form = "in the textbook's form" if bare else "as the model runs it"
    return inputs, f"{loaded.name}, layer {read.layer}, {form}; weights equal the model's to {read.max_error:.0e}"
