"""T5's three stacks, and BigBird's blocks."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.catalog.configs import describe, layer_specs
from polyhead.errors import UnsupportedError
from polyhead.spec import (
    Causal,
    Chunked,
    Full,
    Global,
    Grouped,
    NoPosition,
    RandomLinks,
    RelativeBias,
    Softmax,
    retention,
)
from tests.catalog.configs.files import BIG_BIRD, T5, only, patterns


def t5(**fields: Any) -> Any:
    return describe(T5 | {"vocab_size": 100, "d_ff": 48} | fields, name="n", title="t", source="s")


def test_t5s_stacks() -> None:
    read = t5(num_decoder_layers=3)
    assert (len(read.encoder_layers), len(read.layers), len(read.cross_layers)) == (2, 3, 3)
    assert read.num_layers == 3
    encoder, decoder, cross = read.encoder_layers[0], read.layers[0], read.cross_layers[0]
    for layer in (encoder, decoder, cross):
        assert layer.attention.storage == Grouped(num_heads=4, head_dim=8)
        assert layer.attention.weighting == Softmax(scale=1.0)
        assert (layer.embed_dim, layer.qkv_bias, layer.out_bias) == (64, False, False)
    assert encoder.attention.position == RelativeBias.t5(num_buckets=16, bidirectional=True)
    assert decoder.attention.position == RelativeBias.t5(num_buckets=16, bidirectional=False)
    assert (encoder.attention.pattern, decoder.attention.pattern) == (Full(), Causal())
    assert (cross.attention.position, cross.source, cross.context_dim) == (NoPosition(), "cross", 64)


def test_t5s_layers_share_their_bias() -> None:
    assert len(set(t5(num_layers=4).encoder_layers)) == 1
    assert t5().layers[1].attention.parameter_shapes() == {"bias_table": (16, 4)}


def test_t5s_decoder_is_as_deep_as_its_encoder_unless_it_says() -> None:
    assert len(t5().layers) == len(t5(num_decoder_layers=None).layers) == 2
    assert list(t5().layers) == layer_specs(T5)


def test_t5s_distances() -> None:
    read = t5(relative_attention_max_distance=64)
    assert read.encoder_layers[0].attention.position.max_distance == 64
    assert t5().encoder_layers[0].attention.position.max_distance == 128  # its files say nothing


def test_big_birds_blocks() -> None:
    seen = Chunked(size=8, left=1, right=1) | Global(first=8, last=8)
    drawn = [RandomLinks(per_query=3, seed=layer, block=8, span="all") for layer in range(2)]
    assert patterns(BIG_BIRD) == [seen | links for links in drawn]
    assert patterns(BIG_BIRD | {"num_random_blocks": 0}) == [seen] * 2
    assert only(BIG_BIRD | {"attention_type": "original_full"}).attention.pattern == Full()


def test_big_birds_biases() -> None:
    for use_bias in (True, False):
        layer = layer_specs(BIG_BIRD | {"use_bias": use_bias})[0]
        assert (layer.qkv_bias, layer.out_bias) == (use_bias, True)


def test_big_birds_other_types() -> None:
    with pytest.raises(
        UnsupportedError, match=r"attention_type .*: 'dense' is not read; what is read: block_sparse, o"
    ):
        layer_specs(BIG_BIRD | {"attention_type": "dense"})


def test_what_a_decoder_keeps_of_its_encoder() -> None:
    cross = t5().cross_layers[0]
    assert retention(cross.attention, cross.source).kind == "context"
