"""What is stored, and shared between heads: MHA (#2), MQA (#5), GQA (#6), MLA (#15)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.mechanism import Forces, Mechanism
from polyhead.catalog.settings import Settings
from polyhead.errors import SpecError, UnsupportedError
from polyhead.spec import AttentionSpec, Grouped, Latent, NoPosition
from polyhead.spec.choice import divisors


def with_heads(base: AttentionSpec, settings: Settings, num_kv_heads: int | None) -> AttentionSpec:
    """Give a base another number of key/value heads, after splitting it if it has a single head."""
    storage = base.storage
    if not isinstance(storage, Grouped):
        raise UnsupportedError(f"heads can be shared or given their own in Grouped storage alone, not in {storage!r}")
    if storage.num_heads == 1:
        pieces = settings.num_heads
        if storage.head_dim % pieces or base.v_head_dim % pieces:
            widths = f"{storage.head_dim} (queries and keys) and {base.v_head_dim} (values)"
            raise SpecError(f"num_heads={pieces} does not divide the widths {widths}; give num_heads that does")
        storage = Grouped(num_heads=pieces, head_dim=storage.head_dim // pieces, v_head_dim=base.v_head_dim // pieces)
    return dataclasses.replace(base, storage=dataclasses.replace(storage, num_kv_heads=num_kv_heads))


def as_mha(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Give every head its own keys and values."""
    return with_heads(base, settings, None)


def as_mqa(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Give all heads the same keys and values."""
    return with_heads(base, settings, 1)


def as_gqa(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Share keys and values between groups of heads."""
    split = with_heads(base, settings, settings.num_heads if base.num_heads == 1 else base.num_kv_heads)
    groups = settings.num_groups or max((d for d in divisors(split.num_kv_heads)[1:-1]), default=split.num_kv_heads)
    return with_heads(base, settings, groups)


def as_mla(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Replace keys and values by a latent; position, if any, has entered the keys before that."""
    storage = Latent(
        num_heads=base.num_heads,
        kv_lora_rank=settings.latent_rank or 1,
        qk_nope_head_dim=base.qk_head_dim,
        qk_rope_head_dim=0,
        v_head_dim=base.v_head_dim,
    )
    return dataclasses.replace(base, storage=storage, position=NoPosition())


MHA = Mechanism(
    number=2,
    name="mha",
    title="Multi-head attention",
    aliases=("multi-head", "multihead", "multi head", "multi-head-attention", "multiheadattention"),
    year=2017,
    paper="Vaswani et al., NeurIPS 2017 (arXiv 1706.03762)",
    formula="concat_h(softmax(Q_h·K_hᵀ/√d_h)·V_h)·W_O",
    latex=(
        r"\mathop{\mathrm{concat}}_{h=1}^{H}"
        r"\left(\mathrm{softmax}\!\left(\frac{Q_hK_h^\top}{\sqrt{d_h}}\right)V_h\right)W_O"
    ),
    changes="storage",
    time="O(N²d)",
    cache="2·H·d_h",
    what="The width is split into H heads; each attends with keys and values of its own.",
    gains="A token attends to H different places at once, for the arithmetic of one full-width head.",
    loses="The largest cache of all: 16 KiB per token and layer at d = 4096 in FP16.",
    when="Training from scratch, with RoPE and flash, where the cache is not what limits.",
    forces=Forces(quality=1, speed=0, memory=0, position=0),
    inputs="heads",
    substitute=as_mha,
)

MQA = Mechanism(
    number=5,
    name="mqa",
    title="Multi-query attention",
    aliases=("multi-query", "multiquery", "multi query", "multi-query-attention"),
    year=2019,
    paper="Shazeer (arXiv 1911.02150)",
    formula="concat_h(softmax(Q_h·Kᵀ/√d_h)·V)·W_O, one K and V for all heads",
    latex=(
        r"\mathop{\mathrm{concat}}_{h=1}^{H}"
        r"\left(\mathrm{softmax}\!\left(\frac{Q_hK^\top}{\sqrt{d_h}}\right)V\right)W_O"
    ),
    changes="storage",
    time="O(N²d)",
    cache="2·d_h",
    what="All heads keep their own queries and read the same keys and values.",
    gains="A cache H times smaller, and faster decoding, since that waits for the cache to be read.",
    loses="Heads differ only in what they ask, so quality falls: about 1 % of perplexity in the paper.",
    when="Fast decoding where GQA's cache is still too large, as in PaLM and Falcon-7B.",
    forces=Forces(quality=-1, speed=1, memory=1, position=0),
    inputs="heads",
    substitute=as_mqa,
)

GQA = Mechanism(
    number=6,
    name="gqa",
    title="Grouped-query attention",
    aliases=("grouped-query", "grouped query", "group-query", "grouped-query-attention", "grouped"),
    year=2023,
    paper="Ainslie et al., EMNLP 2023 (arXiv 2305.13245)",
    formula="concat_h(softmax(Q_h·K_gᵀ/√d_h)·V_g)·W_O, g the group of h; G = 1 is MQA, G = H is MHA",
    latex=(
        r"\mathop{\mathrm{concat}}_{h=0}^{H-1}"
        r"\left(\mathrm{softmax}\!\left(\frac{Q_hK_{g(h)}^\top}{\sqrt{d_h}}\right)V_{g(h)}\right)W_O,"
        r" \qquad g(h) = \left\lfloor \frac{hG}{H} \right\rfloor"
    ),
    changes="storage",
    time="O(N²d)",
    cache="2·G·d_h",
    what="Heads form G groups, and the heads of a group read the same keys and values.",
    gains="A cache of G/H of MHA's at little loss, and faster decoding, which is bound by memory.",
    loses="A little quality against MHA, and a cache still G times that of MQA.",
    when="The usual choice: LLaMA 3 8B and Mistral 7B have 8 groups for 32 heads, Qwen2-7B 4 for 28.",
    forces=Forces(quality=0, speed=1, memory=1, position=0),
    inputs="heads",
    substitute=as_gqa,
)

MLA = Mechanism(
    number=15,
    name="mla",
    title="Multi-head latent attention",
    aliases=("latent", "latent attention", "latent-attention", "multi-head latent", "deepseek"),
    year=2024,
    paper="DeepSeek-AI, DeepSeek-V2 (arXiv 2405.04434)",
    formula="c = h·W_DKV; K = [c·W_UK, RoPE key], V = c·W_UV; only c and the RoPE key are cached",
    latex=(
        r"c_j = h_jW_{DKV}, \qquad k_{j,h} = \bigl[\,c_jW_{UK,h} \;;\; R_jk^R_j\,\bigr],"
        r" \qquad v_{j,h} = c_jW_{UV,h}"
    ),
    changes="storage",
    time="O(N²d)",
    cache="d_c + d_r",
    what="Each token is stored as one short latent row that unfolds into every head's key and value.",
    gains="DeepSeek-V2 caches 512 + 64 numbers instead of MHA's 32,768, and reports better quality.",
    loses="RoPE cannot enter the latent and needs a key of its own; decoding costs more arithmetic.",
    when="Where the cache is the hard limit, as in DeepSeek-V2 (236B parameters, 128K tokens).",
    forces=Forces(quality=1, speed=0, memory=1, position=-1),
    inputs="latent",
    substitute=as_mla,
)
