"""Hypothesis strategies: random patterns, and random specs that are legal."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from polyhead.spec import (
    Alibi,
    AttentionSpec,
    Band,
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
    NoPosition,
    NTKScaling,
    Pattern,
    RandomLinks,
    RelativeBias,
    Rotary,
    Softmax,
    YarnScaling,
)
from polyhead.spec.rules import Choices, refusal

small = st.integers(0, 5)
sizes = st.integers(1, 4)
positive = st.floats(0.1, 100.0)
maybe_block = st.none() | st.integers(1, 3)


def _maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def bands() -> st.SearchStrategy[Band]:
    return st.builds(Band, left=_maybe(small), right=_maybe(small))


def chunks() -> st.SearchStrategy[Chunked]:
    return st.builds(Chunked, size=sizes, left=st.integers(0, 2), right=st.integers(0, 2))


def globals_() -> st.SearchStrategy[Global]:
    return st.builds(Global, first=small, last=sizes) | st.builds(Global, first=sizes, last=small)


def random_links(block: st.SearchStrategy[int | None] = maybe_block) -> st.SearchStrategy[RandomLinks]:
    return st.builds(
        RandomLinks, per_query=sizes, seed=st.integers(0, 99), block=block, span=st.sampled_from(["past", "all"])
    )


def links(block: st.SearchStrategy[int | None] = maybe_block) -> st.SearchStrategy[Links]:
    rows = st.lists(st.lists(st.integers(0, 12), max_size=4), max_size=8)
    return st.builds(Links, table=st.lists(rows, min_size=1, max_size=2), block=block)


def primitives(global_tokens: st.SearchStrategy[Global] = globals_()) -> st.SearchStrategy[Pattern]:  # noqa: B008
    return st.one_of(bands(), chunks(), global_tokens, random_links(), links())


def patterns(parts: st.SearchStrategy[Pattern] = primitives()) -> st.SearchStrategy[Pattern]:  # noqa: B008
    """Return primitives and their combinations, a few deep."""
    return st.recursive(
        parts,
        lambda inner: st.builds(lambda a, b: a & b, inner, inner) | st.builds(lambda a, b: a | b, inner, inner),
        max_leaves=5,
    )


def scalings() -> st.SearchStrategy[Any]:
    trained = st.integers(2, 64)
    divisors = st.lists(positive, min_size=1, max_size=4)
    return st.one_of(
        st.builds(LinearScaling, factor=positive),
        st.builds(NTKScaling, factor=positive),
        st.builds(DynamicNTKScaling, factor=positive, original_max_seq_len=trained),
        st.builds(
            YarnScaling,
            factor=positive,
            original_max_seq_len=trained,
            attention_factor=_maybe(positive),
            mscale=_maybe(positive),
            mscale_all_dim=_maybe(positive),
            truncate=st.booleans(),
        ),
        st.builds(Llama3Scaling, factor=positive, low_freq_factor=st.floats(0.1, 1.0), original_max_seq_len=trained),
        st.builds(LongRopeScaling, short_factor=divisors, long_factor=divisors, original_max_seq_len=trained),
    )


def positions() -> st.SearchStrategy[Any]:
    even = st.integers(2, 8).map(lambda n: 2 * n)
    return st.one_of(
        st.just(NoPosition()),
        st.builds(RelativeBias.t5, num_buckets=even, max_distance=st.integers(9, 64), bidirectional=st.booleans()),
        st.builds(RelativeBias.clipped, max_distance=small),
        st.builds(RelativeBias.shaw, max_distance=small),
        st.builds(
            Rotary,
            theta=st.floats(2.0, 1e6),
            pairs=st.sampled_from(["half", "interleaved"]),
            direction=st.sampled_from(["paper", "reversed"]),
            rotary_dim=_maybe(even),
            scaling=_maybe(scalings()),
        ),
        st.builds(Alibi, slopes=_maybe(st.lists(positive, min_size=1, max_size=4))),
        st.builds(Alibi, first_head=small, total_heads=_maybe(st.integers(1, 12))),
    )


def storages() -> st.SearchStrategy[Any]:
    grouped = st.builds(
        lambda group, **fields: Grouped(num_heads=group * fields["num_kv_heads"], **fields),
        sizes,
        num_kv_heads=sizes,
        head_dim=st.integers(1, 9),
        v_head_dim=_maybe(sizes),
    )
    latent = st.builds(
        Latent,
        num_heads=sizes,
        kv_lora_rank=sizes,
        q_lora_rank=_maybe(sizes),
        qk_nope_head_dim=sizes,
        qk_rope_head_dim=small,
        v_head_dim=sizes,
    )
    return grouped | latent


def weightings() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(Softmax, scale=_maybe(positive), softcap=_maybe(positive), sink=st.booleans()),
        st.builds(Linear, feature_map=st.sampled_from(["elu+1", "relu", "softplus"])),
        st.builds(
            Differential,
            form=st.sampled_from(["paper", "diffllama", "clipped"]),
            layer=sizes,
            lambda_init=_maybe(st.floats(0.0, 0.9)),
        ),
    )


def choices() -> st.SearchStrategy[Choices]:
    """Return four choices that may or may not fit together."""
    return st.builds(Choices, storage=storages(), position=positions(), pattern=patterns(), weighting=weightings())


def specs() -> st.SearchStrategy[AttentionSpec]:
    """Return legal specs: what is undefined is replaced by the nearest that is defined."""

    def legal(drawn: Choices) -> AttentionSpec:
        found = refusal(drawn)
        return AttentionSpec(**vars(drawn if found is None else found.nearest))

    return choices().map(legal)


@st.composite
def layers(draw: st.DrawFn, attention: st.SearchStrategy[AttentionSpec] | None = None) -> LayerSpec:
    spec = draw(specs() if attention is None else attention)
    source = draw(st.sampled_from(["self", "cross"]))
    is_latent = isinstance(spec.storage, Latent)
    return LayerSpec(
        attention=spec,
        embed_dim=draw(sizes),
        source=source,
        context_dim=draw(_maybe(sizes)) if source == "cross" else None,
        qkv_bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        qk_norm=not is_latent and draw(st.booleans()),
        latent_norm=draw(_maybe(st.booleans())) if is_latent else None,
        norm_eps=draw(positive),
    )
