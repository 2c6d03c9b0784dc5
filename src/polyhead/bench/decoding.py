"""What is timed of decoding: a token, or a few, after a cache. No torch here."""

from __future__ import annotations

from typing import Any

from polyhead.bench.case import EXPONENT, Case, Target
from polyhead.spec import (
    Alibi,
    AttentionSpec,
    Causal,
    Differential,
    Grouped,
    Latent,
    LayerSpec,
    Linear,
    RelativeBias,
    Rotary,
    SlidingWindow,
)

CACHED = 32_768
"""Keys that a token sees, its own among them."""

RAGGED = (16_000, 12_000, 8_000, 6_000, 4_000, 2_000, 1_000, 500)
"""Numbers of keys of the sequences of a batch."""

STEADY = 0.023
"""Exponent of a time that grows by a tenth from 1,024 keys to 65,536."""

GROUPED = Grouped(num_heads=32, num_kv_heads=8, head_dim=128)
WAYS = {"numba": "", "decode": "-torch"}
"""The kernels that decode, and what their cases' names end in."""


def _decoding(name: str, title: str, spec: AttentionSpec | LayerSpec, **fields: Any) -> Case:
    given = {"length": CACHED, "queries": 1, "kernel": "auto", **fields}
    return Case(name=f"decode-{name}", title=title, spec=spec, decoding=True, **given)


def _causal(storage: Grouped = GROUPED, **choices: Any) -> AttentionSpec:
    return AttentionSpec(**{"storage": storage, "pattern": Causal(), **choices})


def _both(name: str, title: str, spec: AttentionSpec, limits: dict[str, tuple[float, float]], **fields: Any) -> Any:
    """Return a case for each way to decode, with the targets of each."""
    for index, (kernel, ending) in enumerate(WAYS.items()):
        targets = tuple(Target(against=peer, at_most=each[index]) for peer, each in limits.items())
        yield _decoding(f"{name}{ending}", title, spec, kernel=kernel, peers=tuple(limits), targets=targets, **fields)


_MQA = Grouped(num_heads=32, num_kv_heads=1, head_dim=128)
_DIFFERENTIAL = Grouped(num_heads=16, num_kv_heads=4, head_dim=128, v_head_dim=256)

DECODING: tuple[Case, ...] = (
    *_both("gqa", "GQA, 32:8 heads of 128", _causal(), {"sdpa-cached": (0.2, 0.25), "read": (2.2, 3.3)}),
    *_both("mqa", "MQA, 32:1 heads of 128", _causal(_MQA), {"sdpa-cached": (0.11, 0.15)}),
    *_both("gqa-bf16", "GQA in bfloat16", _causal(), {"ours-float32": (0.75, 1.2)}, dtype="bfloat16"),
    *_both("mqa-bf16", "MQA in bfloat16", _causal(_MQA), {"ours-float32": (1.0, 2.2)}, dtype="bfloat16"),
    *_both("alibi", "GQA with ALiBi", _causal(position=Alibi()), {"ours-plain": (1.12, 1.12)}),
    *_both("t5", "GQA with T5's bias", _causal(position=RelativeBias.t5()), {"ours-plain": (1.12, 1.12)}),
    *_both(
        "differential",
        "differential, 16 outputs of 2×128 keys and 256 values",
        _causal(_DIFFERENTIAL, weighting=Differential()),
        {"ours-plain": (1.25, 1.25)},
    ),
    *_both("four", "GQA, 4 queries at once", _causal(), {"ours-one-query": (2.3, 2.5)}, queries=4),
    *_both(
        "ragged",
        "GQA, 8 sequences of 500 to 16,000 keys",
        _causal(),
        {"ours-one-sequence": (1.15, 1.15)},
        length=RAGGED[0],
        sequences=RAGGED,
    ),
    _decoding(
        "window",
        "GQA in a causal window of 1,024",
        _causal(pattern=SlidingWindow.causal(1024)),
        peers=(),
        lengths=(1024, 4096, 16_384, 65_536),
        targets=(Target(against=EXPONENT, at_most=STEADY),),
    ),
    _decoding(
        "linear",
        "linear, 32:8 heads of 128",
        _causal(weighting=Linear()),
        peers=(),
        lengths=(1024, 4096, 16_384, 65_536),
        targets=(Target(against=EXPONENT, at_most=STEADY),),
    ),
    _decoding(
        "mla-layer",
        "MLA, DeepSeek-V2's layer of 128 heads, latent 512 + 64",
        LayerSpec(
            attention=AttentionSpec(
                storage=Latent(
                    num_heads=128,
                    kv_lora_rank=512,
                    q_lora_rank=1536,
                    qk_nope_head_dim=128,
                    qk_rope_head_dim=64,
                    v_head_dim=128,
                ),
                position=Rotary(pairs="interleaved"),
                pattern=Causal(),
            ),
            embed_dim=5120,
        ),
        length=8192,
        peers=("deepseek-v2-step",),
        targets=(Target(against="deepseek-v2-step", at_most=0.05),),
    ),
    _decoding(
        "smollm2",
        "SmolLM2-135M, the whole model, adopted",
        LayerSpec(
            attention=_causal(Grouped(num_heads=9, num_kv_heads=3, head_dim=64), position=Rotary(theta=100_000.0)),
            embed_dim=576,
        ),
        length=7600,
        model="smollm2",
        peers=("transformers", "transformers-static", "implementation", "floor"),
        targets=(
            Target(against="transformers", at_most=0.75),
            Target(against="transformers-static", at_most=0.85),
        ),
    ),
)
"""The set of decoding: float32 and one sequence, unless the title says otherwise."""
