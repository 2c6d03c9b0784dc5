"""Where keys and values come from: cross-attention (#4)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.mechanism import Forces, Mechanism
from polyhead.catalog.settings import Settings
from polyhead.spec import AttentionSpec, Full


def as_cross(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Let every query see every key of the other sequence; each sequence counts from 0."""
    return dataclasses.replace(base, pattern=Full())


CROSS = Mechanism(
    number=4,
    name="cross",
    title="Cross-attention",
    aliases=("cross attention", "encoder-decoder", "encoder-decoder attention", "xattn"),
    year=2017,
    paper="Vaswani et al., NeurIPS 2017 (arXiv 1706.03762)",
    formula="softmax(QKᵀ/√d_k)·V, Q from one sequence (x), K and V from another (c)",
    latex=(
        r"\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right)V,"
        r" \qquad Q = xW_Q,\quad K = cW_K,\quad V = cW_V"
    ),
    changes="source",
    time="O(N·M·d), M tokens in the other sequence",
    cache="2·H·d_h per token of the other sequence, computed once",
    what="Queries come from one sequence, keys and values from another; the formula stays the baseline's.",
    gains="The output can read another text, image or sound, whose cache is filled once and never grows.",
    loses="It carries nothing between the output's own tokens, so it comes on top of self-attention.",
    when="Encoder–decoder models, such as translation with the original Transformer or T5.",
    forces=Forces(quality=0, speed=0, memory=0, position=0),
    inputs="second sequence",
    substitute=as_cross,
)
