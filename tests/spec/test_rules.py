"""Each rule refuses with its reason, and proposes the nearest spec that is legal."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings

from polyhead.errors import SpecError
from polyhead.spec import (
    Alibi,
    AttentionSpec,
    Causal,
    Chunked,
    DynamicNTKScaling,
    Full,
    Grouped,
    Latent,
    Linear,
    LinearScaling,
    Links,
    LongRopeScaling,
    NoPosition,
    NTKScaling,
    RandomLinks,
    RelativeBias,
    Rotary,
    SlidingWindow,
    Softmax,
)
from polyhead.spec.rules import RULES, Choices, refusal
from tests.strategies import choices

GROUPED = Grouped(num_heads=4, num_kv_heads=2, head_dim=8)
LATENT = Latent(num_heads=4, kv_lora_rank=6, qk_nope_head_dim=3, qk_rope_head_dim=4, v_head_dim=5)


def of(**fields: Any) -> Choices:
    defaults = {"storage": GROUPED, "position": NoPosition(), "pattern": Full(), "weighting": Softmax()}
    return Choices(**{**defaults, **fields})


class Case(NamedTuple):
    """A combination that a rule refuses, part of the reason, and the nearest one that is legal."""

    rule: str
    choices: Choices
    reason: str
    nearest: Choices


def longrope(planes: int) -> LongRopeScaling:
    return LongRopeScaling(short_factor=(1.0,) * planes, long_factor=(2.0,) * planes, original_max_seq_len=64)


def tables(heads: int) -> Links:
    return Links(table=(((0,),),) * heads)


CASES = [
    *(
        Case(
            "linear-bias",
            of(weighting=Linear(), position=position, pattern=Causal()),
            f"Linear has no score that {position!r} could be added to: φ(q)·φ(k) is never formed for a pair",
            of(weighting=Linear(), pattern=Causal()),
        )
        for position in (
            RelativeBias.t5(),
            RelativeBias.clipped(max_distance=2),
            RelativeBias.shaw(max_distance=2),
            Alibi(),
        )
    ),
    Case(
        "linear-pattern",
        of(weighting=Linear(), pattern=SlidingWindow.causal(3), position=Rotary()),
        "Linear keeps one running sum over keys, from which SlidingWindow(left=2, right=0) cannot leave any out",
        of(weighting=Linear(), pattern=Causal(), position=Rotary()),
    ),
    Case(
        "linear-pattern",
        of(weighting=Linear(), pattern=Chunked(size=3)),
        "from which Chunked(size=3) cannot leave any out",
        of(weighting=Linear(), pattern=Full()),
    ),
    Case(
        "latent-rotary",
        of(storage=LATENT, position=Rotary(theta=500.0, rotary_dim=2)),
        "Rotary turns 2 widths and the RoPE key has 4",
        of(storage=LATENT, position=Rotary(theta=500.0)),
    ),
    Case(
        "latent-rotary",
        of(storage=dataclasses.replace(LATENT, qk_rope_head_dim=0), position=Rotary()),
        "Latent(qk_rope_head_dim=0) has no RoPE key, so Rotary has nothing to turn",
        of(storage=dataclasses.replace(LATENT, qk_rope_head_dim=0)),
    ),
    Case(
        "rotary-width",
        of(position=Rotary(rotary_dim=10)),
        "rotary_dim=10 is more than the head's 8 widths",
        of(position=Rotary(rotary_dim=8)),
    ),
    Case(
        "rotary-width",
        of(storage=Grouped(num_heads=2, head_dim=5), position=Rotary(pairs="interleaved")),
        "Rotary turns pairs of widths, and there are 5",
        of(storage=Grouped(num_heads=2, head_dim=5), position=Rotary(pairs="interleaved", rotary_dim=4)),
    ),
    Case(
        "rotary-width",
        of(storage=Grouped(num_heads=2, head_dim=1), position=Rotary()),
        "Rotary turns pairs of widths, and there are 1",
        of(storage=Grouped(num_heads=2, head_dim=1)),
    ),
    Case(
        "rotary-width",
        of(storage=dataclasses.replace(LATENT, qk_rope_head_dim=3), position=Rotary()),
        "Rotary turns pairs of widths, and there are 3",
        of(storage=dataclasses.replace(LATENT, qk_rope_head_dim=2), position=Rotary()),
    ),
    *(
        Case(
            "scaling-width",
            of(position=Rotary(rotary_dim=2, scaling=scaling)),
            "NTK scaling divides by rotary_dim - 2, and rotary_dim=2; use at least 4",
            of(position=Rotary(rotary_dim=2)),
        )
        for scaling in (NTKScaling(factor=2.0), DynamicNTKScaling(factor=2.0, original_max_seq_len=8))
    ),
    Case(
        "scaling-width",
        of(position=Rotary(scaling=longrope(3))),
        "short_factor has 3 entries and the rotation 4 planes; give one per plane",
        of(position=Rotary()),
    ),
    Case(
        "alibi-slopes",
        of(position=Alibi(slopes=(0.5, 0.25))),
        "Alibi has 2 slopes for these heads and the spec num_heads=4",
        of(position=Alibi()),
    ),
    Case(
        "alibi-slopes",
        of(position=Alibi(first_head=6, total_heads=8)),
        "Alibi has 2 slopes for these heads and the spec num_heads=4",
        of(position=Alibi()),
    ),
    Case(
        "link-tables",
        of(pattern=tables(6) | Causal()),
        "Links has 6 tables and the spec num_heads=4; give one, or one per head",
        of(storage=Grouped(num_heads=6, num_kv_heads=2, head_dim=8), pattern=tables(6) | Causal()),
    ),
    Case(
        "link-tables",
        of(storage=Grouped(num_heads=4, num_kv_heads=4, head_dim=8), pattern=tables(6)),
        "Links has 6 tables and the spec num_heads=4",
        of(storage=Grouped(num_heads=6, num_kv_heads=3, head_dim=8), pattern=tables(6)),
    ),
    Case(
        "link-tables",
        of(storage=LATENT, pattern=tables(3)),
        "Links has 3 tables and the spec num_heads=4",
        of(storage=dataclasses.replace(LATENT, num_heads=3), pattern=tables(3)),
    ),
]


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES} == {rule.name for rule in RULES}


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case.rule}" for number, case in enumerate(CASES)])
def test_a_rule_refuses_with_its_reason_and_the_nearest_that_is_legal(case: Case) -> None:
    found = refusal(case.choices)
    assert found is not None
    assert found.rule == case.rule
    assert case.reason in found.reason
    assert found.nearest == case.nearest
    assert refusal(case.nearest) is None
    proposed = AttentionSpec(**vars(case.nearest))
    with pytest.raises(SpecError, match=re.escape(f"{found.reason}; the nearest legal spec is {proposed!r}")):
        AttentionSpec(**vars(case.choices))


@pytest.mark.parametrize("examples", [500, pytest.param(3000, marks=pytest.mark.slow)])
def test_whatever_is_refused_something_legal_is_near(examples: int) -> None:
    @settings(max_examples=examples)
    @given(choices())
    def holds(drawn: Choices) -> None:
        found = refusal(drawn)
        if found is None:
            AttentionSpec(**vars(drawn))
            return
        assert refusal(found.nearest) is None
        assert vars(found.nearest) != vars(drawn)
        assert found.nearest.weighting == drawn.weighting, "no rule asks for other weights"
        with pytest.raises(SpecError, match=re.escape(found.reason)):
            AttentionSpec(**vars(drawn))

    holds()


@pytest.mark.parametrize(
    "choices",
    [
        of(weighting=Linear(), position=Rotary(scaling=LinearScaling(factor=2.0)), pattern=Causal()),
        of(weighting=Softmax(softcap=5.0, sink=True), position=RelativeBias.shaw(max_distance=2)),
        of(storage=dataclasses.replace(LATENT, qk_rope_head_dim=0), position=Alibi()),
        of(storage=dataclasses.replace(LATENT, qk_rope_head_dim=3)),
        of(pattern=tables(4) & RandomLinks(per_query=1, seed=0)),
        of(storage=LATENT, position=Rotary(rotary_dim=4)),
        of(position=Rotary(rotary_dim=2)),
    ],
)
def test_what_is_defined_is_legal(choices: Choices) -> None:
    assert refusal(choices) is None
