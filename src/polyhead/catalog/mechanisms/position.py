"""How position enters: relative bias (#7), RoPE (#8), ALiBi (#9)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.mechanism import Forces, Mechanism
from polyhead.catalog.settings import Settings
from polyhead.spec import Alibi, AttentionSpec, RelativeBias, Rotary


def as_relative_bias(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Add a number per distance to the score."""
    return dataclasses.replace(base, position=RelativeBias.clipped(max_distance=settings.max_distance))


def as_rope(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Rotate queries and keys, by the base's own RoPE if it has one."""
    own = base.position if isinstance(base.position, Rotary) else settings.rotary
    return dataclasses.replace(base, position=own)


def as_alibi(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Subtract a slope times the distance."""
    slopes = settings.alibi_slopes
    if slopes is not None and len(slopes) == 1:
        slopes *= base.num_heads
    return dataclasses.replace(base, position=Alibi(slopes=slopes))


RELATIVE_BIAS = Mechanism(
    number=7,
    name="relative-bias",
    title="Relative position bias",
    aliases=("relative", "relative-position", "relative-position-bias", "relative bias", "rpe", "t5", "shaw"),
    year=2018,
    paper="Shaw et al., NAACL 2018 (arXiv 1803.02155); T5: Raffel et al., JMLR 2020 (arXiv 1910.10683)",
    formula="softmax(QKᵀ/√d_k + B)·V, B_ij = f(j − i), learned",
    latex=r"\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}} + B\right)V, \qquad B_{ij} = f(j - i)",
    changes="position",
    time="O(N²d)",
    cache="2·H·d_h",
    what="A learned number for the distance between query and key is added to their score.",
    gains="Each head learns which distances matter to it, near or far, before or after.",
    loses="Many fused kernels cannot add a bias per pair, and far distances share one number.",
    when=(
        "Encoders and encoder–decoders of moderate length: T5 (a number per head and bucket of distances, "
        "and no 1/√d_k) or Shaw's form (learned vectors added to keys and values)."
    ),
    forces=Forces(quality=0, speed=-1, memory=0, position=1),
    inputs="as they are",
    substitute=as_relative_bias,
)

ROPE = Mechanism(
    number=8,
    name="rope",
    title="Rotary position embedding",
    aliases=("rotary", "rotary embedding", "rotary-embedding", "rotary-position-embedding", "roformer"),
    year=2021,
    paper="Su et al., RoFormer (arXiv 2104.09864)",
    formula="(R_i·q_i)·(R_j·k_j) depends only on i − j; plane t turns by θ_t = 10000^(−2t/d) per token",
    latex=(
        r"(R_iq_i)^\top(R_jk_j) = q_i^\top R_{j-i}\,k_j,"
        r" \qquad \theta_t = 10000^{-2t/d},\quad t = 0, \dots, \tfrac{d}{2} - 1"
    ),
    changes="position",
    time="O(N²d)",
    cache="2·H·d_h",
    what="Queries and keys are rotated by angles that grow with their position, two widths at a time.",
    gains="Scores know the distance with nothing learned, and any kernel serves: the rotation precedes it.",
    loses="It fails past the trained length unless its frequencies are scaled, as in LLaMA 3.1.",
    when="The usual choice for language models: LLaMA 3, Qwen-2, Mistral, and DeepSeek-V2's RoPE key.",
    forces=Forces(quality=0, speed=0, memory=0, position=1),
    inputs="as they are",
    substitute=as_rope,
)

ALIBI = Mechanism(
    number=9,
    name="alibi",
    title="Attention with linear biases",
    aliases=("linear biases", "linear-biases", "linear bias", "linear-bias"),
    year=2022,
    paper="Press et al., ICLR 2022 (arXiv 2108.12409)",
    formula="softmax(QKᵀ/√d_k − m_h·|i − j|)·V, m_h = 2^(−8h/H) where H is a power of two",
    latex=(
        r"\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}} - m_h\,\lvert i - j\rvert\right)V,"
        r" \qquad m_h = 2^{-8h/H},\quad h = 1, \dots, H"
    ),
    changes="position",
    time="O(N²d)",
    cache="2·H·d_h",
    what="A fixed slope times the distance is subtracted from the score; each head has its own slope.",
    gains="Nothing is learned for position, and a model runs on texts longer than it was trained on.",
    loses="Every head fades with distance at a fixed rate, so a far token that matters is hard to reach.",
    when="Inputs longer than the training texts, where what is near matters most, as in BLOOM and MPT.",
    forces=Forces(quality=-1, speed=0, memory=0, position=1),
    inputs="as they are",
    substitute=as_alibi,
)
