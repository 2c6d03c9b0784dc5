"""The whole spec: what follows from four choices, and its JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from polyhead.errors import SpecError
from polyhead.spec import (
    SCHEMA,
    Alibi,
    AttentionSpec,
    Causal,
    Differential,
    Full,
    Grouped,
    Latent,
    LayerSpec,
    Linear,
    NoPosition,
    RelativeBias,
    Rotary,
    Softmax,
)
from polyhead.spec.attention import _choice_types, part_from_data
from tests.pictures import lines
from tests.spec.schema_1_specs import SPECS
from tests.strategies import layers, specs

GQA = Grouped(num_heads=6, num_kv_heads=2, head_dim=8)
MLA = Latent(num_heads=6, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=5)

# --- what follows from the choices


def test_what_has_a_usual_value_has_it_as_its_default() -> None:
    usual = AttentionSpec(storage=GQA, position=NoPosition(), pattern=Full(), weighting=Softmax())
    assert AttentionSpec(storage=GQA) == usual


def test_a_value_width_at_its_default_is_no_difference() -> None:
    explicit = AttentionSpec(storage=Grouped(num_heads=6, num_kv_heads=2, head_dim=8, v_head_dim=8))
    assert explicit == AttentionSpec(storage=GQA)
    twice = Grouped(num_heads=6, num_kv_heads=2, head_dim=8, v_head_dim=16)
    assert AttentionSpec(storage=twice, weighting=Differential()) == AttentionSpec(
        storage=GQA, weighting=Differential()
    )


@pytest.mark.parametrize(
    ("spec", "query", "key", "value"),
    [
        (AttentionSpec(storage=GQA), (6, 8), (2, 8), (2, 8)),
        (AttentionSpec(storage=Grouped(num_heads=6, head_dim=8, v_head_dim=3)), (6, 8), (6, 8), (6, 3)),
        (AttentionSpec(storage=GQA, weighting=Differential()), (12, 8), (4, 8), (2, 16)),
        (AttentionSpec(storage=MLA), (6, 12), (1, 20), None),
        (AttentionSpec(storage=MLA, weighting=Differential()), (12, 12), (1, 20), None),
    ],
)
def test_heads_and_width_of_each_input(spec: AttentionSpec, query: object, key: object, value: object) -> None:
    assert spec.input_shapes() == {"query": query, "key": key, "value": value}


LAMBDAS = dict.fromkeys(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"), (8,))


@pytest.mark.parametrize(
    ("choices", "shapes"),
    [
        ({"storage": GQA}, {}),
        ({"storage": GQA, "position": Rotary()}, {}),
        ({"storage": GQA, "position": Alibi()}, {}),
        ({"storage": GQA, "weighting": Linear()}, {}),
        ({"storage": GQA, "position": RelativeBias.t5(num_buckets=10)}, {"bias_table": (10, 6)}),
        ({"storage": GQA, "position": RelativeBias.clipped(max_distance=3)}, {"bias_table": (7, 6)}),
        (
            {"storage": Grouped(num_heads=6, head_dim=8, v_head_dim=5), "position": RelativeBias.shaw(max_distance=3)},
            {"relative_keys": (7, 8), "relative_values": (7, 5)},
        ),
        ({"storage": MLA, "position": RelativeBias.shaw(max_distance=1)}, {
            "w_uk": (6, 8, 16), "w_uv": (6, 5, 16), "relative_keys": (3, 12), "relative_values": (3, 5)
        }),
        ({"storage": GQA, "weighting": Softmax(sink=True)}, {"sinks": (6,)}),
        ({"storage": GQA, "weighting": Differential()}, {**LAMBDAS, "sub_norm": (16,)}),
        ({"storage": GQA, "weighting": Differential(form="diffllama")}, LAMBDAS),
        ({"storage": GQA, "weighting": Differential(form="clipped")}, {}),
        ({"storage": MLA, "weighting": Differential(form="clipped")}, {"w_uk": (12, 8, 16), "w_uv": (6, 5, 16)}),
    ],
)  # fmt: skip
def test_learned_tensors(choices: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    assert AttentionSpec(**choices).parameter_shapes() == shapes


def test_scale_is_one_over_the_root_of_the_query_s_width() -> None:
    assert AttentionSpec(storage=GQA).scale == 1 / math.sqrt(8)
    assert AttentionSpec(storage=MLA).scale == 1 / math.sqrt(12)
    assert AttentionSpec(storage=GQA, weighting=Differential()).scale == 1 / math.sqrt(8)
    assert AttentionSpec(storage=GQA, weighting=Softmax(scale=0.0)).scale == 0.0
    assert AttentionSpec(storage=GQA, weighting=Linear()).scale == 1.0


def test_which_maps_make_a_head() -> None:
    def maps(**weighting: Any) -> list[tuple[int, int]]:
        spec = AttentionSpec(storage=GQA, **weighting)
        return [spec.map_of(head, index) for head in (0, 2, 3) for index in range(spec.num_maps)]

    assert maps() == [(0, 0), (2, 0), (3, 1)]
    assert maps(weighting=Differential()) == [(0, 0), (1, 1), (4, 0), (5, 1), (6, 2), (7, 3)]
    assert maps(weighting=Differential(form="diffllama")) == [(0, 0), (6, 2), (2, 0), (8, 2), (3, 1), (9, 3)]


def test_where_rope_turns() -> None:
    whole, partial = (AttentionSpec(storage=GQA, position=Rotary(rotary_dim=dim)) for dim in (None, 4))
    latent = AttentionSpec(storage=MLA, position=Rotary())
    assert [(s.rotary_offset, s.rotary_dim) for s in (whole, partial, latent)] == [(0, 8), (0, 4), (8, 4)]
    assert AttentionSpec(storage=GQA).rotary_dim == 0


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: AttentionSpec(storage="mha"), "storage='mha' is not a storage; use for example Grouped(num_heads=8,"),
    (lambda: AttentionSpec(storage=GQA, position=None), "position=None is not a position; use for example Rotary()"),
    (lambda: AttentionSpec(storage=GQA, pattern=Causal), "is not a pattern; use for example Causal()"),
    (
        lambda: AttentionSpec(storage=GQA, weighting=Rotary()),
        "weighting=Rotary() is not a weighting; use for example S",
    ),
    (lambda: LayerSpec(attention=GQA, embed_dim=4), "attention=Grouped(num_heads=6, num_kv_heads=2, head_dim=8) is no"),
    (
        lambda: LayerSpec(attention=SPECS[0], embed_dim=0),
        "embed_dim=0 is not allowed; give a whole number of at least 1",
    ),
    (
        lambda: LayerSpec(attention=SPECS[0], embed_dim=4, source="x"),
        "source='x' is not allowed; use 'self' or 'cross'",
    ),
    (lambda: LayerSpec(attention=SPECS[0], embed_dim=4, qkv_bias=1), "qkv_bias=1 is not allowed; use True or False"),
    (lambda: LayerSpec(attention=SPECS[0], embed_dim=4, norm_eps=0), "norm_eps=0 is not allowed"),
    (
        lambda: LayerSpec(attention=SPECS[0], embed_dim=4, source="cross", context_dim=0),
        "context_dim=0 is not allowed; give a whole number of at least 1",
    ),
    (
        lambda: LayerSpec(attention=SPECS[0], embed_dim=4, context_dim=6),
        "context_dim=6 says nothing with source='self'; use source='cross'",
    ),
    (
        lambda: LayerSpec(attention=SPECS[0], embed_dim=4, latent_norm=False),
        "latent_norm=False says nothing with Grouped, which has no latent; leave it",
    ),
    (
        lambda: LayerSpec(attention=SPECS[0], embed_dim=4, latent_norm=1),
        "latent_norm=1 is not allowed; use True or False",
    ),
    (
        lambda: LayerSpec(attention=AttentionSpec(storage=MLA), embed_dim=4, qk_norm=True),
        "qk_norm=True needs the keys of every head, which Latent never forms; use latent_norm",
    ),
    (
        lambda: LayerSpec.of(SPECS[0]),
        "an AttentionSpec says nothing of the layer's width; give embed_dim=, or a LayerSpec",
    ),
    (
        lambda: LayerSpec.of(LayerSpec(attention=SPECS[0], embed_dim=4), 8),
        "embed_dim=8 is given beside a LayerSpec, which has 4; leave it out",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_is_no_choice_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        build()


# --- a layer


def test_a_layer_is_made_of_four_choices_and_a_width_or_stays_as_it_is() -> None:
    layer = LayerSpec(attention=SPECS[0], embed_dim=4, out_bias=True)
    assert LayerSpec.of(layer) is layer
    assert LayerSpec.of(SPECS[0], 4) == LayerSpec(attention=SPECS[0], embed_dim=4)


def test_a_context_is_as_wide_as_the_layer_unless_it_says_otherwise() -> None:
    def context_dim(**fields: Any) -> int | None:
        return LayerSpec(attention=SPECS[0], embed_dim=4, **fields).context_dim

    assert context_dim() is None
    assert context_dim(source="cross") == 4
    assert context_dim(source="cross", context_dim=6) == 6


def test_a_latent_is_normed_unless_the_layer_says_otherwise() -> None:
    def latent_norm(storage: Any, **fields: Any) -> bool | None:
        return LayerSpec(attention=AttentionSpec(storage=storage), embed_dim=4, **fields).latent_norm

    assert latent_norm(GQA) is None
    assert latent_norm(MLA) is latent_norm(MLA, latent_norm=True) is True
    assert latent_norm(MLA, latent_norm=False) is False


WIDE_VALUES = Grouped(num_heads=6, num_kv_heads=2, head_dim=8, v_head_dim=5)
LOW_RANK = Latent(num_heads=6, kv_lora_rank=16, q_lora_rank=24, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=5)

LAYERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "grouped": (
        {"storage": WIDE_VALUES},
        {},
        """
        q_proj.weight 48 32
        k_proj.weight 16 32
        v_proj.weight 10 32
        o_proj.weight 32 30
        """,
    ),
    "biases and norms": (
        {"storage": GQA},
        {"qkv_bias": True, "out_bias": True, "qk_norm": True},
        """
        q_proj.weight 48 32
        q_proj.bias 48
        k_proj.weight 16 32
        k_proj.bias 16
        v_proj.weight 16 32
        v_proj.bias 16
        q_norm.weight 8
        k_norm.weight 8
        o_proj.weight 32 48
        o_proj.bias 32
        """,
    ),
    "cross": (
        {"storage": GQA},
        {"source": "cross", "context_dim": 20},
        """
        q_proj.weight 48 32
        k_proj.weight 16 20
        v_proj.weight 16 20
        o_proj.weight 32 48
        """,
    ),
    "differential": (
        {"storage": GQA, "weighting": Differential()},
        {},
        """
        q_proj.weight 96 32
        k_proj.weight 32 32
        v_proj.weight 32 32
        o_proj.weight 32 96
        lambda_q1 8
        lambda_k1 8
        lambda_q2 8
        lambda_k2 8
        sub_norm 16
        """,
    ),
    "learned": (
        {"storage": GQA, "position": RelativeBias.t5(num_buckets=10), "weighting": Softmax(sink=True)},
        {"out_bias": True},
        """
        q_proj.weight 48 32
        k_proj.weight 16 32
        v_proj.weight 16 32
        o_proj.weight 32 48
        o_proj.bias 32
        bias_table 10 6
        sinks 6
        """,
    ),
    "latent, whose queries have no bias": (
        {"storage": MLA},
        {"qkv_bias": True, "out_bias": True},
        """
        q_proj.weight 72 32
        kv_a_proj.weight 20 32
        kv_a_proj.bias 20
        kv_a_norm.weight 16
        o_proj.weight 32 30
        o_proj.bias 32
        w_uk 6 8 16
        w_uv 6 5 16
        """,
    ),
    "low-rank query": (
        {"storage": LOW_RANK},
        {"qkv_bias": True},
        """
        q_a_proj.weight 24 32
        q_a_proj.bias 24
        q_a_norm.weight 24
        q_b_proj.weight 72 24
        kv_a_proj.weight 20 32
        kv_a_proj.bias 20
        kv_a_norm.weight 16
        o_proj.weight 32 30
        w_uk 6 8 16
        w_uv 6 5 16
        """,
    ),
    "differential latent of a context, without norms": (
        {"storage": LOW_RANK, "weighting": Differential(form="clipped")},
        {"latent_norm": False, "source": "cross", "context_dim": 20},
        """
        q_a_proj.weight 24 32
        q_b_proj.weight 144 24
        kv_a_proj.weight 20 20
        o_proj.weight 32 30
        w_uk 12 8 16
        w_uv 6 5 16
        """,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_tensor_of_a_layer_by_its_name_in_order(name: str) -> None:
    choices, fields, expected = LAYERS[name]
    layer = LayerSpec(attention=AttentionSpec(**choices), embed_dim=32, **fields)
    shapes = layer.parameter_shapes()
    assert [" ".join(map(str, (tensor, *shape))) for tensor, shape in shapes.items()] == lines(expected)


# --- JSON


@given(specs())
def test_a_spec_survives_json(spec: AttentionSpec) -> None:
    assert AttentionSpec.from_json(spec.to_json()) == spec
    assert AttentionSpec.from_json(spec.to_json(indent=2)) == spec


@given(layers())
def test_a_layer_survives_json(layer: LayerSpec) -> None:
    assert LayerSpec.from_json(layer.to_json()) == layer


def test_json_says_its_schema_and_every_field() -> None:
    data = json.loads(AttentionSpec(storage=GQA).to_json())
    assert data["schema"] == SCHEMA == 1
    assert data["storage"] == {"type": "Grouped", "num_heads": 6, "num_kv_heads": 2, "head_dim": 8, "v_head_dim": None}
    assert list(data) == ["schema", "type", "storage", "position", "pattern", "weighting"]


SAVED = json.loads((Path(__file__).parent / "data" / "schema_1.json").read_text())


def test_what_schema_1_wrote_can_be_read_for_ever() -> None:
    for entry, expected in zip(SAVED, SPECS, strict=True):
        assert entry["schema"] == 1
        assert type(expected).from_json(json.dumps(entry)) == expected


def test_a_layer_saved_before_it_had_a_field_gets_that_field_s_usual_value() -> None:
    def read(**changes: Any) -> LayerSpec:
        return LayerSpec.from_json(json.dumps({**SAVED[-1], "qk_norm": False, **changes}))

    assert not {"context_dim", "latent_norm"} & set(SAVED[-1])
    old = read()
    assert (old.source, old.context_dim, old.latent_norm) == ("cross", old.embed_dim, None)
    assert read(source="self").context_dim is None
    latent = json.loads(AttentionSpec(storage=MLA).to_json())
    assert read(attention={name: value for name, value in latent.items() if name != "schema"}).latent_norm is True


def test_the_saved_file_has_every_type_that_schema_1_can_hold() -> None:
    types = set(re.findall(r'"type": "(\w+)"', json.dumps(SAVED)))
    assert types == set(_choice_types())


def saved(**changes: Any) -> str:
    return json.dumps({**SAVED[0], **changes})


UNREADABLE = [
    ("{", "this is not JSON: "),
    ("", "this is not JSON: "),
    ("[]", "expected the JSON of a AttentionSpec, got 'list'"),
    ('"AttentionSpec"', "got 'str'; write one with to_json()"),
    ("{}", "got None"),
    (json.dumps(SAVED[-1]), "expected the JSON of a AttentionSpec, got 'LayerSpec'"),
    (saved(schema=2), "schema=2 is not one this version reads (1 to 1); a newer polyhead may"),
    (saved(schema=0), "schema=0 is not one this version reads"),
    (saved(schema="1"), "schema='1' is not one this version reads"),
    (saved(schema=True), "schema=True is not one this version reads"),
    (json.dumps({k: v for k, v in SAVED[0].items() if k != "schema"}), "schema=None is not one this version reads"),
    (saved(pattern={"type": "Spiral"}), "no part of a spec has the type 'Spiral'; known are Alibi, AllOf, "),
    (saved(pattern={"type": "Pattern"}), "no part of a spec has the type 'Pattern'"),
    (saved(pattern={"type": ["Band"]}), "no part of a spec has the type ['Band']"),
    (saved(pattern={"left": 1}), "no part of a spec has the type None"),
    (saved(pattern={"type": "Band", "width": 3}), "Band has no field 'width'; its fields are left, right"),
    (saved(storage={"type": "Grouped", "num_heads": 3}), "Grouped needs the field 'head_dim'"),
    (saved(colour="red"), "AttentionSpec has no field 'colour'"),
    (saved(storage=8), "storage=8 is not a storage"),
    (saved(pattern={"type": "AllOf", "parts": [1]}), "1 is not a pattern"),
    (saved(pattern={"type": "AllOf", "parts": []}), "AllOf needs at least one pattern"),
    (saved(pattern={"type": "AnyOf", "parts": 1}), "AnyOf has one field, 'parts', a list of patterns"),
    (saved(weighting={"type": "Linear"}, position={"type": "Alibi"}), "Linear has no score that Alibi() could"),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE)
def test_what_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        AttentionSpec.from_json(text)


def test_combinations_are_normalised_when_they_are_read() -> None:
    causal, chunks = ({"type": "Band", "left": None, "right": 0}, {"type": "Chunked", "size": 4, "left": 0, "right": 0})
    read = AttentionSpec.from_json(saved(pattern={"type": "AllOf", "parts": [chunks, causal, chunks]}))
    assert repr(read.pattern) == "Causal() & Chunked(size=4)"


@given(specs())
def test_each_part_of_a_spec_survives_as_data(spec: AttentionSpec) -> None:
    assert part_from_data(spec.to_data()) == spec
    for name in ("storage", "position", "pattern", "weighting"):
        part = getattr(spec, name)
        assert part_from_data(json.loads(json.dumps(part.to_data()))) == part


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"type": "Full"}, "no part of a spec has the type 'Full'"),
        ({}, "no part of a spec has the type None"),
        ({"type": "Grouped", "num_heads": 2}, "Grouped needs the field 'head_dim'"),
        ({"type": "Band", "width": 2}, "Band has no field 'width'"),
        (["Band"], "expected a part of a spec, got list"),
    ],
)
def test_what_is_no_part_says_why(data: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        part_from_data(data)
