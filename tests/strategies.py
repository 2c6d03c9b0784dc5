"""Hypothesis strategies: random patterns, and random specs that are legal."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import strategies as st

from polyhead.spec import (
    Alibi,
    AttentionSpec,
    Band,
    BigBird,
    Causal,
    Chunked,
    Differential,
    DynamicNTKScaling,
    Full,
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


@functools.cache  # making a strategy costs more than drawing from it
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


# Layers that decode. Numbers stay moderate (a scale of 100 would drown float32, and is nothing to a cache), trained
# lengths short enough to be passed, and an ε is no smaller than a row's numbers might be.

moderate = st.floats(0.5, 2.0)


@functools.cache  # making a strategy costs more than drawing from it
def links_for(num_heads: int) -> st.SearchStrategy[Links]:
    """Return tables for all heads or for each."""
    rows = st.lists(st.lists(st.integers(0, 12), max_size=4), max_size=12)
    tables = st.sampled_from(sorted({1, num_heads})).flatmap(lambda n: st.lists(rows, min_size=n, max_size=n))
    return st.builds(Links, table=tables, block=maybe_block)


@functools.cache
def any_patterns(num_heads: int) -> st.SearchStrategy[Pattern]:
    """Return patterns for so many heads."""
    return patterns(st.one_of(bands(), chunks(), globals_(), random_links(), links_for(num_heads)))


@functools.cache
def past_patterns(num_heads: int) -> st.SearchStrategy[Pattern]:
    """Return patterns that a cache can serve: causal, and the same however long the sequence becomes."""
    first = st.builds(Global, first=sizes)
    windows = st.builds(Band, left=small, right=st.just(0))
    chunked = st.builds(Chunked, size=sizes, left=st.integers(0, 2), right=st.integers(0, 1))
    random = st.builds(RandomLinks, per_query=sizes, seed=st.integers(0, 99), block=maybe_block)
    given = links_for(num_heads)
    bigbird = st.builds(
        BigBird,
        radius=st.integers(0, 2),
        num_global=small,
        num_random=small,
        seed=st.integers(0, 99),
        block=maybe_block,
    )
    some = st.one_of(
        windows,
        st.builds(lambda window, start: window | start, windows, first),
        chunked,
        st.builds(lambda chunk, start: chunk | start, chunked, first),
        st.just(Causal()),
        bigbird,
        random,
        given,
        first,
        patterns(st.one_of(bands(), chunked, first, random, given)),
    )
    return some.map(lambda pattern: pattern & Causal())


@functools.cache
def moderate_storages() -> st.SearchStrategy[Any]:
    grouped = st.builds(
        lambda group, **fields: Grouped(num_heads=group * fields["num_kv_heads"], **fields),
        st.integers(1, 2),
        num_kv_heads=st.integers(1, 2),
        head_dim=st.sampled_from([4, 4, 6, 2, 3, 1]),
        v_head_dim=_maybe(sizes),
    )
    latent = st.builds(
        Latent,
        num_heads=st.integers(1, 3),
        kv_lora_rank=sizes,
        q_lora_rank=_maybe(sizes),
        qk_nope_head_dim=sizes,
        qk_rope_head_dim=st.sampled_from([4, 2, 0]),
        v_head_dim=sizes,
    )
    return grouped | latent


@functools.cache
def moderate_scalings(planes: int) -> st.SearchStrategy[Any]:
    trained = st.integers(2, 8)
    divisors = st.lists(moderate, min_size=planes, max_size=planes)
    some = [
        st.builds(LongRopeScaling, short_factor=divisors, long_factor=divisors, original_max_seq_len=trained),
        st.builds(LinearScaling, factor=moderate),
        st.builds(YarnScaling, factor=moderate, original_max_seq_len=trained, beta_fast=st.just(0.5)),
        st.builds(Llama3Scaling, factor=moderate, low_freq_factor=st.just(0.2), original_max_seq_len=trained),
    ]
    if planes > 1:
        some.append(st.builds(DynamicNTKScaling, factor=moderate, original_max_seq_len=trained))
        some.append(st.builds(NTKScaling, factor=moderate))
    return st.one_of(some)


@functools.cache
def moderate_rotary(turned: int, width: int) -> st.SearchStrategy[Rotary]:
    return st.builds(
        Rotary,
        theta=st.floats(2.0, 100.0),
        pairs=st.sampled_from(["half", "interleaved"]),
        direction=st.sampled_from(["paper", "reversed"]),
        rotary_dim=st.just(None if turned == width else turned),
        scaling=_maybe(moderate_scalings(turned // 2)),
    )


@st.composite
def moderate_positions(draw: st.DrawFn, storage: Grouped | Latent, *, biased: bool) -> Any:
    width = storage.qk_rope_head_dim if isinstance(storage, Latent) else storage.head_dim
    widths = [width] if isinstance(storage, Latent) else [width - width % 2, 2]
    kind = draw(st.sampled_from(["rotary", "rotary", "bias", "none"]))
    if kind == "rotary" and width > 1:
        return draw(moderate_rotary(draw(st.sampled_from(widths)), width))
    return draw(moderate_biases(storage.num_heads)) if biased and kind != "none" else NoPosition()


@functools.cache
def moderate_biases(num_heads: int) -> st.SearchStrategy[Any]:
    even = st.integers(2, 4).map(lambda n: 2 * n)
    slopes = st.lists(moderate, min_size=num_heads, max_size=num_heads)
    return st.one_of(
        st.builds(RelativeBias.t5, num_buckets=even, max_distance=st.integers(5, 12), bidirectional=st.booleans()),
        st.builds(RelativeBias.clipped, max_distance=small),
        st.builds(RelativeBias.shaw, max_distance=small),
        st.builds(Alibi, slopes=_maybe(slopes)),
        st.builds(lambda before: Alibi(first_head=before, total_heads=before + num_heads + 1), small),
    )


@functools.cache
def moderate_weightings() -> st.SearchStrategy[Any]:
    softmax = st.builds(Softmax, scale=_maybe(moderate), softcap=_maybe(moderate), sink=st.booleans())
    return st.one_of(
        st.just(Softmax()),
        softmax,
        st.builds(Linear, feature_map=st.sampled_from(["elu+1", "relu", "softplus"])),
        st.builds(
            Differential,
            form=st.sampled_from(["paper", "diffllama", "clipped"]),
            layer=sizes,
            lambda_init=_maybe(st.floats(0.0, 0.9)),
            norm_eps=st.floats(0.01, 1.0),
        ),
    )


@st.composite
def cached_specs(draw: st.DrawFn, source: str = "self") -> AttentionSpec:
    """Return specs that have a cache: with ``"cross"`` any, else those of the past."""
    weighting, storage = draw(moderate_weightings()), draw(moderate_storages())
    is_linear = isinstance(weighting, Linear)
    if is_linear:
        pattern = Causal() if source == "self" else draw(st.sampled_from([Full(), Causal()]))
    else:
        pattern = draw(past_patterns(storage.num_heads) if source == "self" else any_patterns(storage.num_heads))
    position = draw(moderate_positions(storage, biased=not is_linear))
    return AttentionSpec(storage=storage, position=position, pattern=pattern, weighting=weighting)


@st.composite
def cached_layers(draw: st.DrawFn) -> LayerSpec:
    """Return layers that have a cache."""
    source = draw(st.sampled_from(["self", "self", "self", "cross"]))
    spec = draw(cached_specs(source))
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
        norm_eps=draw(st.floats(0.01, 1.0)),
    )
