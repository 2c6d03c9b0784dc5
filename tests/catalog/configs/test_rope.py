"""The rotation of a config.json: both spellings, every scaling against transformers, every refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyhead.catalog.configs import layer_specs
from polyhead.errors import CheckpointError, UnsupportedError
from polyhead.spec import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rotary,
    Scaling,
    YarnScaling,
)
from tests.catalog.configs.files import LLAMA, rotary, without

TRAINED = {"original_max_position_embeddings": 32}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
TUPLES = {name: tuple(values) for name, values in FACTORS.items()}
YARN = {"beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False}

SCALINGS: list[tuple[dict[str, Any], Scaling | None]] = [
    ({"rope_type": "default"}, None),
    ({"rope_type": "linear", "factor": 2.0}, LinearScaling(factor=2.0)),
    ({"rope_type": "dynamic", "factor": 4}, DynamicNTKScaling(factor=4.0, original_max_seq_len=128)),
    # whose trained length is not looked at
    ({"rope_type": "dynamic", "factor": 4, **TRAINED}, DynamicNTKScaling(factor=4.0, original_max_seq_len=128)),
    ({"rope_type": "yarn", "factor": 4.0}, YarnScaling(factor=4.0, original_max_seq_len=128)),
    (
        {"rope_type": "yarn", "factor": None, "finetuned": True, **TRAINED},
        YarnScaling(factor=4.0, original_max_seq_len=32),
    ),
    (
        {"rope_type": "yarn", "factor": 3.0, **TRAINED, **YARN},
        YarnScaling(factor=3.0, original_max_seq_len=32, **YARN),  # type: ignore[arg-type]
    ),
    (
        {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5},
        YarnScaling(factor=2.0, original_max_seq_len=128, attention_factor=1.5),
    ),
    ({"rope_type": "llama3", **LLAMA3, **TRAINED}, Llama3Scaling(original_max_seq_len=32)),
    ({"rope_type": "llama3", **LLAMA3}, Llama3Scaling(original_max_seq_len=128)),
    (
        {"rope_type": "longrope", **FACTORS, **TRAINED},
        LongRopeScaling(**TUPLES, original_max_seq_len=32, factor=4.0),
    ),
    (
        {"rope_type": "longrope", **FACTORS, "factor": 3.0, "attention_factor": 1.25},
        LongRopeScaling(**TUPLES, original_max_seq_len=128, factor=3.0, attention_factor=1.25),
    ),
]
IDS = [f"{fields['rope_type']}-{number}" for number, (fields, _) in enumerate(SCALINGS)]


@pytest.mark.parametrize(("fields", "scaling"), SCALINGS, ids=IDS)
def test_both_spellings(fields: dict[str, Any], scaling: Scaling | None) -> None:
    expected = Rotary(theta=5000.0, scaling=scaling)
    assert rotary(LLAMA | {"rope_scaling": fields}) == expected
    assert rotary(without(LLAMA, "rope_theta") | {"rope_parameters": {"rope_theta": 5000.0, **fields}}) == expected
    older = {"type" if name == "rope_type" else name: value for name, value in fields.items()}
    assert rotary(LLAMA | {"rope_scaling": older, "rope_parameters": {"rope_type": "linear"}}) == expected


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_scaling(nothing: Any) -> None:
    assert rotary(LLAMA | {"rope_scaling": nothing}) == rotary(LLAMA | {"rope_parameters": nothing}) == rotary(LLAMA)


@pytest.mark.parametrize(("fields", "scaling"), SCALINGS, ids=IDS)
def test_scalings_turn_as_transformers_does(fields: dict[str, Any], scaling: Scaling | None) -> None:
    code = pytest.importorskip("transformers.models.llama.modeling_llama", reason="transformers is the peer")
    config = without(LLAMA, "model_type") | {"rope_scaling": dict(fields)}
    theirs = code.LlamaRotaryEmbedding(code.LlamaConfig(**config))
    ours = rotary(LLAMA | {"rope_scaling": fields})
    frequencies = ours.frequencies(16, np.arange(4)) if ours.per_query else ours.frequencies(16)[None]
    np.testing.assert_allclose(frequencies[0], theirs.inv_freq.numpy(), rtol=1e-5)
    assert ours.amplitude == pytest.approx(theirs.attention_scaling, rel=1e-6)


def test_the_length_beside_the_rotation_wins() -> None:
    config = LLAMA | {"original_max_position_embeddings": 64, "rope_scaling": {"type": "llama3", **LLAMA3, **TRAINED}}
    assert rotary(config).scaling == Llama3Scaling(original_max_seq_len=64)
    code = pytest.importorskip("transformers.models.llama.modeling_llama", reason="transformers is the peer")
    theirs = code.LlamaRotaryEmbedding(code.LlamaConfig(**without(config, "model_type")))
    np.testing.assert_allclose(rotary(config).frequencies(16), theirs.inv_freq.numpy(), rtol=1e-5)


def test_the_base_among_the_rotation_wins() -> None:
    assert rotary(LLAMA | {"rope_parameters": {"rope_theta": 7.0}}).theta == 7.0
    assert rotary(LLAMA | {"rope_parameters": {"rope_theta": None}}).theta == 5000.0
    assert rotary(without(LLAMA, "rope_theta")).theta == 10_000.0  # LLaMA 1 and 2 say nothing


def test_whole_heads_may_be_called_a_part_of_one() -> None:
    assert rotary(LLAMA | {"partial_rotary_factor": 1.0}) == rotary(LLAMA)


IN_THE_WAY = [
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor .*: the file says 0.5; this type turns whole h"),
    ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor .*: the file says 0.25"),
    ({"rope_scaling": {"type": "su"}}, "rope_scaling.rope_type .*: 'su' is not read; what is read: default, li"),
    ({"rope_scaling": {"mrope_section": [1]}}, "rope_scaling.mrope_section .*: it is not; what is read: rope_t"),
    ({"rope_parameters": {"full_attention": {}}}, "rope_parameters.full_attention of config.json stands in"),
]


@pytest.mark.parametrize(("fields", "message"), IN_THE_WAY)
def test_fields_that_cannot_be_expressed(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        layer_specs(LLAMA | fields)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"type": "linear"}, "factor"),
        ({"type": "dynamic"}, "factor"),
        ({"type": "llama3", **without(LLAMA3, "low_freq_factor")}, "low_freq_factor"),
        ({"type": "longrope", **without(FACTORS, "long_factor")}, "long_factor"),
    ],
)
def test_fields_that_a_scaling_needs(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json has no rope_scaling.{name}, which its rope_type needs"):
        layer_specs(LLAMA | {"rope_scaling": fields})


BROKEN = [
    ({"rope_theta": "big"}, "no attention that is defined: theta='big' is not allowed"),
    ({"rope_scaling": "linear"}, "rope_scaling='linear' of config.json is not an object"),
    ({"rope_scaling": {"type": "longrope", **FACTORS, "short_factor": 2.0}}, "short_factor .* is not a list"),
    ({"rope_scaling": {"type": "longrope", **FACTORS, "short_factor": [1.0]}}, "short_factor has 1 entries"),
]


@pytest.mark.parametrize(("fields", "message"), BROKEN)
def test_numbers_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        layer_specs(LLAMA | fields)
