"""The specs that data/schema_1.json was written from. Neither is ever changed: what was saved must stay readable."""

from __future__ import annotations

from polyhead.spec import (
    Alibi,
    AttentionSpec,
    BigBird,
    Causal,
    Chunked,
    Differential,
    DynamicNTKScaling,
    Global,
    Grouped,
    Latent,
    LayerSpec,
    Linear,
    LinearScaling,
    Links,
    Llama3Scaling,
    LongRopeScaling,
    NTKScaling,
    RandomLinks,
    RelativeBias,
    Rotary,
    SlidingWindow,
    Softmax,
    YarnScaling,
)

HEADS = Grouped(num_heads=4, num_kv_heads=2, head_dim=8)
MLA = Latent(num_heads=4, kv_lora_rank=16, q_lora_rank=24, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6)

SPECS: list[AttentionSpec | LayerSpec] = [
    AttentionSpec(storage=Grouped(num_heads=8, head_dim=64)),
    AttentionSpec(storage=HEADS, position=Rotary(theta=500_000.0, scaling=Llama3Scaling()), pattern=Causal()),
    AttentionSpec(
        storage=Grouped(num_heads=4, num_kv_heads=1, head_dim=8, v_head_dim=5),
        position=RelativeBias.t5(num_buckets=16, max_distance=64, bidirectional=False),
        weighting=Softmax(scale=1.0, sink=True),
    ),
    AttentionSpec(storage=HEADS, position=RelativeBias.clipped(max_distance=4), weighting=Softmax(softcap=50.0)),
    AttentionSpec(storage=HEADS, position=RelativeBias.shaw(max_distance=16), pattern=SlidingWindow.symmetric(3)),
    AttentionSpec(
        storage=MLA,
        position=Rotary(
            pairs="interleaved",
            scaling=YarnScaling(
                factor=40.0, original_max_seq_len=4096, mscale=1.0, mscale_all_dim=0.707, beta_fast=16.0, truncate=False
            ),
        ),
        pattern=Causal(),
        weighting=Differential(form="diffllama", layer=3),
    ),
    AttentionSpec(
        storage=HEADS,
        position=Rotary(direction="reversed", rotary_dim=4, scaling=LinearScaling(factor=2.0)),
        pattern=Chunked(size=8, left=1) & Causal(),
    ),
    AttentionSpec(
        storage=HEADS,
        position=Rotary(scaling=NTKScaling(factor=4.0)),
        weighting=Linear(feature_map="softplus"),
    ),
    AttentionSpec(
        storage=HEADS,
        position=Rotary(scaling=DynamicNTKScaling(factor=2.0, original_max_seq_len=2048)),
        pattern=BigBird(radius=2, num_global=3, num_random=4, seed=11, block=16, span="all"),
        weighting=Differential(lambda_init=0.5, norm_eps=1e-6),
    ),
    AttentionSpec(
        storage=HEADS,
        position=Rotary(
            scaling=LongRopeScaling(
                short_factor=(1.0, 1.1, 1.2, 1.3),
                long_factor=(1.0, 2.0, 4.0, 8.0),
                original_max_seq_len=4096,
                factor=32.0,
                attention_factor=1.19,
            )
        ),
        pattern=(RandomLinks(per_query=2, seed=7) & SlidingWindow(left=64)) | Global(first=1, last=2),
    ),
    AttentionSpec(
        storage=HEADS,
        position=Alibi(first_head=4, total_heads=12),
        pattern=Links(table=(((0,), (0, 1)), ((0,), (1,)), ((), (0,)), ((0,), ())), block=4) & Causal(),
        weighting=Differential(form="clipped", lambda_init=0.3),
    ),
    LayerSpec(
        attention=AttentionSpec(storage=HEADS, position=Alibi(slopes=(0.5, 0.25, 0.125, 0.0625))),
        embed_dim=32,
        source="cross",
        qkv_bias=True,
        out_bias=True,
        qk_norm=True,
        norm_eps=1e-5,
    ),
]
