"""What is timed: the documented set, and how a case is found by its name. No torch here."""

from __future__ import annotations

from typing import Any

from polyhead.bench.case import Case, Target
from polyhead.bench.decoding import DECODING
from polyhead.errors import unknown_name
from polyhead.spec import (
    Alibi,
    AttentionSpec,
    Causal,
    Chunked,
    Differential,
    Full,
    Global,
    Grouped,
    Latent,
    LayerSpec,
    Linear,
    NoPosition,
    RandomLinks,
    RelativeBias,
    Rotary,
    SlidingWindow,
    Softmax,
)

MOST_MEMORY = 64
"""MiB that any mechanism may take at 16,384 keys."""


def case(name: str) -> Case:
    """Return the case of a name.

    Args:
        name: Its name.

    Returns:
        The case.

    Raises:
        UnknownNameError: If there is none, with the nearest names.
    """
    found = next((one for one in EVERY if one.name == name), None)
    if found is None:
        raise unknown_name("case", name, [one.name for one in EVERY])
    return found


def _spec(**choices: Any) -> AttentionSpec:
    return AttentionSpec(**{"storage": Grouped(num_heads=8, head_dim=64), **choices})


def _layer(*, embed_dim: int = 512, fields: dict[str, Any] | None = None, **choices: Any) -> LayerSpec:
    return LayerSpec(attention=_spec(**choices), embed_dim=embed_dim, **(fields or {}))


def _at_most(**ratios: float) -> tuple[Target, ...]:
    """Return targets by peer; a peer's hyphens are underscores here."""
    return tuple(Target(against=name.replace("_", "-"), at_most=ratio) for name, ratio in ratios.items())


def _t5() -> dict[str, Any]:
    return {"position": RelativeBias.t5(), "weighting": Softmax(scale=1.0)}


WINDOW = SlidingWindow.causal(512)
BIGBIRD = (
    Chunked(size=64, left=1, right=1)
    | Global(first=64, last=64)
    | RandomLinks(per_query=3, seed=0, block=64, span="all")
)
LATENT = Latent(num_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)

CASES: tuple[Case, ...] = (
    Case(
        name="full",
        title="full",
        spec=_spec(pattern=Full()),
        length=4096,
        peers=("sdpa",),
        quick=1024,
        targets=_at_most(sdpa=1.05, memory=MOST_MEMORY),
    ),
    Case(
        name="causal",
        title="causal",
        spec=_spec(pattern=Causal()),
        length=4096,
        peers=("sdpa",),
        quick=1024,
        targets=_at_most(sdpa=1.05, memory=MOST_MEMORY),
    ),
    Case(
        name="causal-cached",
        title="causal, 512 queries after 3,584 cached tokens",
        spec=_spec(pattern=Causal()),
        length=4096,
        queries=512,
        peers=("sdpa",),
        targets=(Target(against="sdpa", at_most=1.15, share_of_pairs=True), *_at_most(memory=MOST_MEMORY)),
    ),
    Case(
        name="alibi-causal",
        title="ALiBi, causal",
        spec=_spec(position=Alibi(), pattern=Causal()),
        length=8192,
        peers=("sdpa", "flex", "sdpa-mask"),
        quick=2048,
        targets=_at_most(sdpa=1.15, flex=0.65, memory=MOST_MEMORY),
    ),
    Case(
        name="alibi",
        title="ALiBi, two-sided",
        spec=_spec(position=Alibi()),
        length=4096,
        peers=("sdpa", "sdpa-mask"),
        targets=_at_most(sdpa=1.15, memory=MOST_MEMORY),
    ),
    Case(
        name="alibi-layer",
        title="ALiBi, causal, layer",
        spec=_layer(position=Alibi(), pattern=Causal()),
        length=4096,
        peers=("x-transformers",),
    ),
    Case(
        name="t5",
        title="T5 bias, two-sided",
        spec=_spec(**_t5()),
        length=4096,
        peers=("sdpa", "sdpa-mask"),
        quick=1024,
        targets=_at_most(sdpa=1.15, memory=MOST_MEMORY),
    ),
    Case(
        name="t5-layer",
        title="T5 bias, two-sided, layer",
        spec=_layer(**_t5()),
        length=4096,
        peers=("t5-sdpa", "t5-eager"),
        targets=_at_most(t5_sdpa=0.2, t5_eager=0.13),
    ),
    Case(
        name="window",
        title="causal window of 512",
        spec=_spec(pattern=WINDOW),
        length=8192,
        peers=("flex", "sdpa"),
        lengths=(4096, 8192, 16384, 32768),
        quick=4096,
        targets=_at_most(flex=0.75, exponent=1.08, memory=MOST_MEMORY),
    ),
    Case(
        name="window-layer",
        title="causal window of 512, RoPE, layer",
        spec=_layer(position=Rotary(), pattern=WINDOW),
        length=8192,
        peers=("mistral-sdpa",),
        targets=_at_most(mistral_sdpa=0.1),
    ),
    Case(
        name="window-first",
        title="causal window of 512 and the first 4 tokens",
        spec=_spec(pattern=Causal() & (WINDOW | Global(first=4))),
        length=8192,
        peers=("window", "flex"),
        targets=_at_most(window=1.15, memory=MOST_MEMORY),
    ),
    Case(
        name="bigbird-layer",
        title="BigBird, blocks of 64: window 3, global 2, random 3, layer",
        spec=_layer(pattern=BIGBIRD, fields={"qkv_bias": True, "out_bias": True}),
        length=4096,
        peers=("bigbird",),
        lengths=(4096, 8192, 16384),
        targets=_at_most(bigbird=0.25, exponent=1.1),
    ),
    Case(
        name="linear",
        title="linear, causal",
        spec=_spec(pattern=Causal(), weighting=Linear()),
        length=32768,
        peers=("sdpa", "fla-naive"),
        lengths=(8192, 16384, 32768, 65536),
        quick=4096,
        targets=_at_most(sdpa=0.035, exponent=1.12, memory=MOST_MEMORY),
    ),
    Case(
        name="differential",
        title="differential, causal, 8 outputs of 2×64 keys and 128 values",
        spec=_spec(pattern=Causal(), weighting=Differential()),
        length=4096,
        peers=("sdpa",),
        quick=1024,
        targets=_at_most(sdpa=2.1, memory=MOST_MEMORY),
    ),
    Case(
        name="differential-layer",
        title="differential, causal, RoPE, layer",
        spec=_layer(embed_dim=1024, position=Rotary(), pattern=Causal(), weighting=Differential(form="diffllama")),
        length=4096,
        peers=("diffllama-sdpa",),
        targets=_at_most(diffllama_sdpa=1.0),
    ),
    Case(
        name="mla",
        title="MLA prefill, 16 heads, keys 128+64, values 128",
        spec=AttentionSpec(storage=LATENT, position=NoPosition(), pattern=Causal()),
        length=2048,
        peers=("sdpa",),
        quick=512,
        targets=_at_most(sdpa=0.4, memory=MOST_MEMORY),
    ),
    Case(
        name="mla-expanded",
        title="MLA prefill, its keys of 192 and values of 128 expanded before",
        spec=AttentionSpec(storage=Grouped(num_heads=16, head_dim=192, v_head_dim=128), pattern=Causal()),
        length=2048,
        peers=("sdpa",),
        targets=_at_most(sdpa=0.4, memory=MOST_MEMORY),
    ),
    Case(
        name="mla-layer",
        title="MLA prefill, 16 heads, keys 128+64, values 128, RoPE, layer",
        spec=LayerSpec(
            attention=AttentionSpec(storage=LATENT, position=Rotary(pairs="interleaved"), pattern=Causal()),
            embed_dim=2048,
        ),
        length=2048,
        peers=("deepseek-v2-sdpa",),
    ),
    Case(
        name="train-window",
        title="causal window of 512",
        spec=_spec(pattern=WINDOW),
        length=8192,
        training=True,
        peers=("sdpa",),
        quick=1024,
        targets=_at_most(sdpa=0.26, memory=MOST_MEMORY),
    ),
    Case(
        name="train-alibi",
        title="ALiBi, causal",
        spec=_spec(position=Alibi(), pattern=Causal()),
        length=4096,
        training=True,
        peers=("sdpa",),
        targets=_at_most(sdpa=1.15, memory=MOST_MEMORY),
    ),
    Case(
        name="train-t5",
        title="T5 bias, two-sided, its table learning",
        spec=_spec(**_t5()),
        length=2048,
        training=True,
        peers=("sdpa",),
        quick=512,
        targets=_at_most(sdpa=1.55, memory=MOST_MEMORY),
    ),
    Case(
        name="train-t5-layer",
        title="T5 bias, two-sided, its table learning, layer",
        spec=_layer(**_t5()),
        length=2048,
        training=True,
        peers=("t5-sdpa",),
        targets=_at_most(t5_sdpa=0.45),
    ),
)
"""The documented set: float32, one sequence, 8 heads of 64 unless the title says otherwise."""

EVERY = (*CASES, *DECODING)
"""The documented set and that of decoding."""
