"""How scores become weights: linear (#10), differential (#14)."""

from __future__ import annotations

import dataclasses

from polyhead.catalog.mechanism import Forces, Mechanism
from polyhead.catalog.settings import Settings
from polyhead.errors import SpecError
from polyhead.spec import AttentionSpec, Causal, Differential, Full, Grouped, Linear, NoPosition


def as_linear(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Drop the softmax; a running sum knows only full and causal patterns, so a window is dropped with it."""
    pattern = Causal() if base.pattern.is_causal else Full()
    return dataclasses.replace(base, pattern=pattern, weighting=Linear(feature_map=settings.feature_map))


def as_differential(base: AttentionSpec, settings: Settings) -> AttentionSpec:
    """Halve every head into two maps; position, if any, has entered queries and keys before that."""
    if base.qk_head_dim % 2:
        raise SpecError(f"a head of width {base.qk_head_dim} cannot be halved into two maps; it must be even")
    storage = Grouped(
        num_heads=base.num_heads,
        num_kv_heads=base.num_kv_heads,
        head_dim=base.qk_head_dim // 2,
        v_head_dim=base.v_head_dim,
    )
    weighting = Differential(form=settings.differential_form, lambda_init=settings.lambda_init)
    return dataclasses.replace(base, storage=storage, position=NoPosition(), weighting=weighting)


LINEAR = Mechanism(
    number=10,
    name="linear",
    title="Linear attention",
    aliases=("linear-attention", "linear transformer", "linear-transformer", "katharopoulos"),
    year=2020,
    paper="Katharopoulos et al., ICML 2020 (arXiv 2006.16236)",
    formula="φ(q)·Σφ(k)vᵀ / φ(q)·Σφ(k), φ = elu + 1",
    latex=(
        r"\frac{\phi(q_i)^\top \sum_j \phi(k_j)\,v_j^\top}{\phi(q_i)^\top \sum_j \phi(k_j)},"
        r" \qquad \phi(x) = \mathrm{elu}(x) + 1"
    ),
    changes="weighting",
    time="O(N·d²)",
    cache="none per token; a fixed d_h×d_h sum and d_h normaliser per head: H·d_h·(d_h + 1)",
    what="Products of features replace the softmax, so one sum over the keys serves every query.",
    gains="Time linear in N, and a state of fixed size instead of a cache.",
    loses="Weights are flat and one sum holds the whole past, so no single token can be picked out well.",
    when="Streams and very long inputs, where a bounded state matters more than exact recall.",
    forces=Forces(quality=-1, speed=1, memory=1, position=0),
    inputs="as they are",
    substitute=as_linear,
)

DIFFERENTIAL = Mechanism(
    number=14,
    name="differential",
    title="Differential attention",
    aliases=("diff", "diff attention", "diff-attention", "diff-transformer", "differential-transformer"),
    year=2024,
    paper="Ye et al. (arXiv 2410.05258)",
    formula="(softmax(Q₁K₁ᵀ/√d) − λ·softmax(Q₂K₂ᵀ/√d))·V, then a norm per head times (1 − λ_init)",
    latex=(
        r"(1 - \lambda_{\text{init}})\,\mathrm{RMSNorm}\!\left(\left("
        r"\mathrm{softmax}\!\left(\frac{Q_1K_1^\top}{\sqrt{d}}\right)"
        r" - \lambda\,\mathrm{softmax}\!\left(\frac{Q_2K_2^\top}{\sqrt{d}}\right)\right)V\right)"
    ),
    changes="weighting",
    time="O(N²d)",
    cache="2·H·d_h",
    what=(
        "The difference of two softmax maps weighs the values; the textbook sets negative weights to 0 and "
        "rescales each row to 1, where the paper keeps the difference and norms each head's output."
    ),
    gains="What both maps give to irrelevant tokens cancels, so the weight gathers on those that matter.",
    loses="Two softmax maps per head take longer, and few fused kernels compute them.",
    when="Retrieval from long contexts, with GQA and RoPE; studied for it, and not in wide use.",
    forces=Forces(quality=1, speed=-1, memory=0, position=0),
    inputs="halves",
    substitute=as_differential,
)
