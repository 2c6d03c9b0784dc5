"""Which pairs may meet: causal (#3), sliding window (#11), BigBird (#12)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.mechanism import Forces, Mechanism
from polyhead.catalog.settings import Settings
from polyhead.spec import AttentionSpec, Causal


def as_causal(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Hide later tokens."""
    return dataclasses.replace(base, pattern=base.pattern & Causal())


def as_sliding_window(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Hide distant tokens."""
    return dataclasses.replace(base, pattern=base.pattern & settings.window)


def as_bigbird(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Keep a window, global tokens and random links."""
    return dataclasses.replace(base, pattern=base.pattern & settings.bigbird)


CAUSAL = Mechanism(
    number=3,
    name="causal",
    title="Causal attention",
    aliases=("causal-mask", "causal mask", "masked", "autoregressive", "unidirectional", "gpt"),
    year=2018,
    paper="Radford et al., GPT (OpenAI, 2018)",
    formula="softmax(QKᵀ/√d_k + M)·V, M_ij = −∞ where j > i, else 0",
    latex=(
        r"\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}} + M\right)V,"
        r" \qquad M_{ij} = \begin{cases} 0 & j \le i \\ -\infty & j > i \end{cases}"
    ),
    changes="pattern",
    time="O(N²d), half the pairs",
    cache="2·H·d_h",
    what="A token sees itself and what came before it, and nothing later.",
    gains="Half the pairs, a past that can be cached, and some sense of order even without positions.",
    loses="A token is understood from its left side alone: nothing later can change how it is read.",
    when="Everything that generates token by token: GPT, LLaMA 3, Qwen-2, Mistral, DeepSeek-V2.",
    forces=Forces(quality=-1, speed=1, memory=0, position=1),
    inputs="as they are",
    substitute=as_causal,
)

SLIDING_WINDOW = Mechanism(
    number=11,
    name="sliding-window",
    title="Sliding-window attention",
    aliases=("sliding window", "swa", "window", "local", "local-attention", "longformer"),
    year=2020,
    paper="Beltagy et al., Longformer (arXiv 2004.05150)",
    formula="softmax(QKᵀ/√d_k + M)·V, M_ij = 0 where |i − j| ≤ w, else −∞",
    latex=(
        r"\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}} + M\right)V,"
        r" \qquad M_{ij} = \begin{cases} 0 & \lvert i - j\rvert \le w \\ -\infty & \text{else} \end{cases}"
    ),
    changes="pattern",
    time="O(N·w·d)",
    cache="2·H·d_h, for the last w tokens only",
    what="A token sees only the tokens at most w away, or in a causal model the last w.",
    gains="Time grows with N instead of N², and a causal model caches the last w tokens only.",
    loses="What lies further away arrives through other layers, w tokens a layer, or not at all.",
    when="Documents over 32K tokens; Mistral 7B v0.1 sees the last 4096 (later versions see all).",
    forces=Forces(quality=-1, speed=1, memory=1, position=0),
    inputs="as they are",
    substitute=as_sliding_window,
)

BIGBIRD = Mechanism(
    number=12,
    name="bigbird",
    title="BigBird sparse attention",
    aliases=("big-bird", "big bird", "sparse", "sparse attention", "block-sparse"),
    year=2020,
    paper="Zaheer et al., NeurIPS 2020 (arXiv 2007.14062)",
    formula="softmax(QKᵀ/√d_k + M)·V, M_ij = 0 for window, global and random pairs, else −∞",
    latex=(
        r"\mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}} + M\right)V, \qquad"
        r" M_{ij} = \begin{cases} 0 & \lvert i - j\rvert \le w \;\text{ or }\; i \in \mathcal{G}"
        r" \;\text{ or }\; j \in \mathcal{G} \;\text{ or }\; j \in \mathcal{R}_i \\"
        r" -\infty & \text{else} \end{cases}"
    ),
    changes="pattern",
    time="O(N·d) for fixed counts of window, global and random keys",
    cache="2·H·d_h, for every token: a link may reach any",
    what="A token sees its neighbours, some random others, and global tokens, which see all in turn.",
    gains="Linear time, with any two tokens at most two steps apart through a global one.",
    loses="Most pairs meet only through others, lone links run slowly, and the cache keeps every token.",
    when="Encoders of long documents, where a question or a class token must reach everything.",
    forces=Forces(quality=-1, speed=1, memory=0, position=0),
    inputs="as they are",
    substitute=as_bigbird,
)
