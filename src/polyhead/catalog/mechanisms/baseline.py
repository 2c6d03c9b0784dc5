"""The baseline (#1), and flash attention (#13), which computes the baseline another way."""

from __future__ import annotations

from polyhead.catalog.mechanism import Forces, Mechanism
from polyhead.catalog.settings import Settings
from polyhead.spec import AttentionSpec


def as_it_is(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Change nothing."""
    return base


SCALED_DOT_PRODUCT = Mechanism(
    number=1,
    name="scaled-dot-product",
    title="Scaled dot-product attention",
    aliases=("sdpa", "scaled dot-product", "dot-product", "standard", "baseline", "vanilla", "softmax"),
    year=2017,
    paper="Vaswani et al., NeurIPS 2017 (arXiv 1706.03762)",
    formula="softmax(QKᵀ/√d_k)·V",
    latex=r"\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right)V",
    changes="nothing",
    time="O(N²d)",
    cache="2·H·d_h",
    what="Each query scores every key, and the softmax of its scores weighs the values.",
    gains="Every pair of tokens is weighed in one step, whatever the distance between them.",
    loses="Time grows with the square of the length, the cache with the length, and order is lost.",
    when="As the yardstick for the other fourteen, or for short inputs whose order does not matter.",
    forces=Forces(quality=0, speed=0, memory=0, position=0),
    inputs="as they are",
    substitute=as_it_is,
)

FLASH = Mechanism(
    number=13,
    name="flash",
    title="FlashAttention",
    aliases=("flash-attention", "flash attention", "flash-attn", "fa", "tiled"),
    year=2022,
    paper="Dao et al., NeurIPS 2022 (arXiv 2205.14135)",
    formula="softmax(QKᵀ/√d_k)·V by tiles: each row keeps its maximum, sum and output so far",
    latex=(
        r"\begin{aligned} m' &= \max\bigl(m, \max_{j \in \text{tile}} s_j\bigr) \\"
        r" \ell' &= e^{m - m'}\,\ell + \textstyle\sum_{j \in \text{tile}} e^{s_j - m'} \\"
        r" o' &= e^{m - m'}\,o + \textstyle\sum_{j \in \text{tile}} e^{s_j - m'}\,v_j \end{aligned}"
        r" \qquad \text{after the last tile: } \frac{o}{\ell}"
    ),
    changes="computation",
    time="O(N²d), memory O(N)",
    cache="2·H·d_h, as the baseline",
    what="The baseline's own function, computed tile by tile so that no N×N matrix is ever stored.",
    gains="Working memory O(N), and often 3 to 8 times the speed on a GPU: scores never leave the chip.",
    loses="It equals the baseline to rounding, not bit for bit, and the cache is no smaller.",
    when="Wherever a kernel takes the pattern and the bias, as for LLaMA 3, Qwen-2 and Mistral.",
    forces=Forces(quality=0, speed=1, memory=0, position=0),
    inputs="as they are",
    substitute=as_it_is,
)
