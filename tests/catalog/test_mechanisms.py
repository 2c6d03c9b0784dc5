"""The fifteen: their names, their texts, and what each puts into a base spec."""

import dataclasses
import re
from collections import Counter

import pytest

from polyhead.catalog import EXAMPLE, Mechanism, Settings, mechanism, mechanisms
from polyhead.catalog.mechanisms.storage import with_heads
from polyhead.catalog.mechanisms.weighting import as_differential
from polyhead.errors import SpecError, UnknownNameError, UnsupportedError
from polyhead.spec import (
    Alibi,
    AttentionSpec,
    Causal,
    Differential,
    Full,
    Grouped,
    Latent,
    Linear,
    NoPosition,
    RelativeBias,
    Rotary,
    SlidingWindow,
    Softmax,
)

NAMES = [
    "scaled-dot-product",
    "mha",
    "causal",
    "cross",
    "mqa",
    "gqa",
    "relative-bias",
    "rope",
    "alibi",
    "linear",
    "sliding-window",
    "bigbird",
    "flash",
    "differential",
    "mla",
]
CHOICES = ("storage", "position", "pattern", "weighting")

MODEL = AttentionSpec(
    storage=Grouped(num_heads=32, num_kv_heads=8, head_dim=128),
    position=Rotary(theta=500_000.0),
    pattern=SlidingWindow.causal(4096),
)

each = pytest.mark.parametrize("entry", mechanisms(), ids=lambda entry: entry.name)


def on_model(name: str, base: AttentionSpec = MODEL, **settings: object) -> AttentionSpec:
    return mechanism(name).substitute(base, Settings(**settings))  # type: ignore[arg-type]


def changed(spec: AttentionSpec, base: AttentionSpec) -> set[str]:
    return {name for name in CHOICES if getattr(spec, name) != getattr(base, name)}


def with_kv_heads(num_heads: int, num_kv_heads: int) -> AttentionSpec:
    storage = Grouped(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=64)
    return dataclasses.replace(MODEL, storage=storage)


# --- Names


def test_fifteen_in_the_textbook_order() -> None:
    assert [entry.name for entry in mechanisms()] == NAMES
    assert [entry.number for entry in mechanisms()] == list(range(1, 16))


def test_no_name_means_two_mechanisms() -> None:
    every = [
        name.lower() for entry in mechanisms() for name in (str(entry.number), entry.name, entry.title, *entry.aliases)
    ]
    assert [name for name, count in Counter(every).items() if count > 1] == []


@each
def test_found_by_every_name_in_any_case_and_by_number(entry: Mechanism) -> None:
    for name in (entry.name, entry.title, *entry.aliases):
        assert mechanism(name) is mechanism(name.upper()) is mechanism(f" {name} ") is entry
    assert mechanism(entry.number) is mechanism(f"#{entry.number}") is entry


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("SDPA", "scaled-dot-product"),
        ("Grouped-query attention", "gqa"),
        ("multi-head", "mha"),
        ("swa", "sliding-window"),
        ("T5", "relative-bias"),
        ("Shaw", "relative-bias"),
        ("rotary", "rope"),
        ("diff", "differential"),
        ("latent", "mla"),
    ],
)
def test_what_people_type(typed: str, name: str) -> None:
    assert mechanism(typed).name == name


def test_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"no mechanism is called 'alibbi'; did you mean alibi\?"):
        mechanism("alibbi")


@pytest.mark.parametrize("name", [0, 16, "", "zzz"])
def test_unknown_name_near_none_lists_all(name: str | int) -> None:
    with pytest.raises(UnknownNameError, match=re.escape(f"use one of {', '.join(NAMES)}")):
        mechanism(name)


# --- Texts


@each
def test_every_text_is_there(entry: Mechanism) -> None:
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if isinstance(value, str):
            assert value.strip() == value != "", field.name
    assert entry.aliases
    assert all(alias == alias.strip().lower() != "" for alias in entry.aliases)


@each
def test_sentences_are_whole_and_short(entry: Mechanism) -> None:
    for name in ("what", "gains", "loses", "when"):
        sentence = getattr(entry, name)
        assert sentence[0].isupper(), name
        assert sentence.endswith("."), name
        assert "  " not in sentence, name
        assert len(sentence) <= 200, name


@each
def test_formula_time_and_cache_are_no_sentences(entry: Mechanism) -> None:
    for name in ("title", "paper", "formula", "latex", "time", "cache"):
        assert not getattr(entry, name).endswith((".", ",", ";")), name
    assert entry.time.startswith("O(N")


@each
def test_year_is_one_of_the_paper(entry: Mechanism) -> None:
    """An arXiv number begins with its year, and a venue carries it."""
    years = re.findall(r"\b20\d\d\b(?!\.)", entry.paper)
    years += [f"20{number[:2]}" for number in re.findall(r"arXiv (\d{4})\.\d{5}", entry.paper)]
    assert str(entry.year) in years


@each
def test_latex_is_balanced(entry: Mechanism) -> None:
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", entry.latex):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"\\left\b", entry.latex)) == len(re.findall(r"\\right\b", entry.latex))
    opened, closed = (re.findall(rf"\\{word}{{(\w+)}}", entry.latex) for word in ("begin", "end"))
    assert opened == closed
    assert entry.latex.isascii()


@each
def test_latex_uses_nothing_that_github_refuses(entry: Mechanism) -> None:
    assert not re.search(r"\\(operatorname|mbox|phantom|newcommand|def)\b", entry.latex)


@each
def test_forces_are_signs(entry: Mechanism) -> None:
    pulls = dataclasses.astuple(entry.forces)
    assert set(pulls) <= {-1, 0, 1}
    assert set(pulls) != {1}  # none wins all four


def test_the_baseline_pulls_nowhere() -> None:
    assert set(dataclasses.astuple(mechanism(1).forces)) == {0}


@each
def test_a_smaller_cache_is_a_pull_on_memory(entry: Mechanism) -> None:
    smaller = {"mqa", "gqa", "mla", "linear", "sliding-window"}
    assert (entry.forces.memory == 1) == (entry.name in smaller)
    assert (not entry.cache.startswith("2·H·d_h") or "only" in entry.cache) == (entry.name in smaller)


# --- On the shared example


@each
def test_spec_survives_json(entry: Mechanism) -> None:
    assert AttentionSpec.from_json(entry.spec.to_json()) == entry.spec


@each
def test_what_differs_from_the_base_is_what_it_changes(entry: Mechanism) -> None:
    expected = {entry.changes} & set(CHOICES)
    if entry.name == "differential":  # two maps out of one head: each has half its width
        expected |= {"storage"}
    assert changed(entry.spec, EXAMPLE.base) == expected


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ("nothing", ["scaled-dot-product"]),
        ("computation", ["flash"]),
        ("source", ["cross"]),
        ("storage", ["mha", "mqa", "gqa", "mla"]),
        ("position", ["relative-bias", "rope", "alibi"]),
        ("pattern", ["causal", "sliding-window", "bigbird"]),
        ("weighting", ["linear", "differential"]),
    ],
)
def test_four_places_to_change_and_three_outside(changes: str, names: list[str]) -> None:
    assert [entry.name for entry in mechanisms() if entry.changes == changes] == names


def test_only_cross_reads_a_second_sequence_and_only_flash_is_tiled() -> None:
    assert [entry.name for entry in mechanisms() if entry.is_cross] == ["cross"]
    assert [entry.name for entry in mechanisms() if entry.is_tiled] == ["flash"]


# --- On a model's own spec


@each
def test_legal_on_a_model_with_as_many_heads(entry: Mechanism) -> None:
    spec = entry.substitute(MODEL, Settings())
    assert AttentionSpec.from_json(spec.to_json()) == spec
    assert spec.num_heads == MODEL.num_heads


@pytest.mark.parametrize("name", ["scaled-dot-product", "flash"])
def test_the_models_own_spec(name: str) -> None:
    assert on_model(name) == MODEL


@pytest.mark.parametrize(("name", "num_kv_heads"), [("mha", 32), ("mqa", 1), ("gqa", 4)])
def test_heads_on_a_model(name: str, num_kv_heads: int) -> None:
    spec = on_model(name)
    assert spec.storage == Grouped(num_heads=32, num_kv_heads=num_kv_heads, head_dim=128)
    assert changed(spec, MODEL) == {"storage"}


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "expected"),
    [(32, 32, 16), (32, 8, 4), (12, 6, 3), (8, 4, 2), (9, 3, 3), (4, 2, 2), (15, 5, 5), (8, 1, 1)],
)
def test_gqa_takes_the_largest_proper_divisor_above_1(num_heads: int, num_kv_heads: int, expected: int) -> None:
    assert on_model("gqa", with_kv_heads(num_heads, num_kv_heads)).num_kv_heads == expected


def test_gqa_takes_the_groups_asked_for() -> None:
    assert on_model("gqa", num_groups=2).num_kv_heads == 2
    with pytest.raises(SpecError, match="num_kv_heads=3 does not divide num_heads=32"):
        on_model("gqa", num_groups=3)


@pytest.mark.parametrize(("name", "num_kv_heads"), [("mha", 4), ("mqa", 1), ("gqa", 2)])
def test_a_single_head_is_split_first(name: str, num_kv_heads: int) -> None:
    base = AttentionSpec(storage=Grouped(num_heads=1, head_dim=64, v_head_dim=32))
    spec = on_model(name, base, num_heads=4)
    expected = Grouped(num_heads=4, num_kv_heads=num_kv_heads, head_dim=16, v_head_dim=8)
    assert spec == AttentionSpec(storage=expected)


def test_causal_keeps_the_models_window() -> None:
    spec = on_model("causal", dataclasses.replace(MODEL, pattern=SlidingWindow(left=5, right=5)))
    assert spec.pattern == SlidingWindow(left=5, right=5) & Causal() == SlidingWindow(left=5, right=0)
    assert on_model("causal") == MODEL  # whose pattern is causal already


def test_cross_sees_the_whole_second_text() -> None:
    assert on_model("cross") == dataclasses.replace(MODEL, pattern=Full())


def test_relative_bias_takes_the_place_of_rope() -> None:
    spec = on_model("relative-bias", max_distance=20)
    assert spec == dataclasses.replace(MODEL, position=RelativeBias.clipped(max_distance=20))


def test_rope_keeps_the_models_own() -> None:
    assert on_model("rope") == MODEL


@pytest.mark.parametrize("position", [NoPosition(), Alibi()])
def test_rope_for_a_model_without(position: NoPosition | Alibi) -> None:
    base = dataclasses.replace(MODEL, position=position)
    assert on_model("rope", base) == dataclasses.replace(MODEL, position=Rotary(theta=10_000.0))


def test_one_slope_of_alibi_is_every_heads() -> None:
    assert on_model("alibi", alibi_slopes=(0.5,)).position == Alibi(slopes=(0.5,) * 32)
    with pytest.raises(SpecError, match="Alibi has 2 slopes"):
        on_model("alibi", alibi_slopes=(0.5, 0.25))


def test_alibi_takes_the_place_of_rope() -> None:
    spec = on_model("alibi")
    assert spec == dataclasses.replace(MODEL, position=Alibi())
    assert isinstance(spec.position, Alibi)
    assert spec.position.head_slopes(32)[-1] == 2.0**-8


def test_linear_keeps_position_and_causality_and_drops_the_window() -> None:
    assert on_model("linear") == dataclasses.replace(MODEL, pattern=Causal(), weighting=Linear())
    two_sided = dataclasses.replace(MODEL, pattern=SlidingWindow.symmetric(3))
    assert on_model("linear", two_sided).pattern == Full()


def test_a_window_narrows_the_models_pattern() -> None:
    assert on_model("sliding-window") == dataclasses.replace(MODEL, pattern=SlidingWindow(left=2, right=0))


def test_bigbird_narrows_the_models_pattern() -> None:
    spec = on_model("bigbird")
    assert spec == dataclasses.replace(MODEL, pattern=MODEL.pattern & Settings().bigbird)
    assert spec.pattern.is_causal


def test_differential_halves_the_heads_and_leaves_no_position_to_come() -> None:
    spec = on_model("differential")
    assert spec == AttentionSpec(
        storage=Grouped(num_heads=32, num_kv_heads=8, head_dim=64, v_head_dim=128),
        pattern=MODEL.pattern,
        weighting=Differential(form="clipped", lambda_init=0.5),
    )
    assert spec.position == NoPosition()
    assert (spec.num_maps * spec.qk_head_dim, spec.v_head_dim) == (MODEL.qk_head_dim, MODEL.v_head_dim)


def test_mla_stores_a_latent_and_leaves_no_position_to_come() -> None:
    spec = on_model("mla", latent_rank=96)
    assert spec == AttentionSpec(
        storage=Latent(num_heads=32, kv_lora_rank=96, qk_nope_head_dim=128, qk_rope_head_dim=0, v_head_dim=128),
        pattern=MODEL.pattern,
        weighting=Softmax(),
    )


# --- Refusals


@pytest.mark.parametrize("name", ["mha", "mqa", "gqa"])
def test_a_latent_has_no_heads_to_share(name: str) -> None:
    base = on_model("mla", latent_rank=96)
    with pytest.raises(UnsupportedError, match="in Grouped storage alone, not in Latent"):
        on_model(name, base)


@pytest.mark.parametrize(("head_dim", "v_head_dim"), [(4, 6), (6, 4), (4, 4)])
def test_a_width_that_heads_do_not_divide(head_dim: int, v_head_dim: int) -> None:
    base = AttentionSpec(storage=Grouped(num_heads=1, head_dim=head_dim, v_head_dim=v_head_dim))
    message = rf"num_heads=3 does not divide the widths {head_dim} .* and {v_head_dim} \(values\)"
    with pytest.raises(SpecError, match=message):
        with_heads(base, Settings(num_heads=3), None)


def test_an_odd_head_cannot_be_halved() -> None:
    base = AttentionSpec(storage=Grouped(num_heads=2, head_dim=5))
    with pytest.raises(SpecError, match="a head of width 5 cannot be halved into two maps; it must be even"):
        as_differential(base, Settings())
