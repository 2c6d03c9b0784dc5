"""The product of the four choices: every legal combination equals the oracle, every other is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import numpy as np
import pytest

import polyhead as ph
from tests.compositions.check import check
from tests.compositions.choices import (
    LONGEST,
    PATTERNS,
    POSITIONS,
    STORAGES,
    WEIGHTINGS,
    Combination,
)
from tests.compositions.report import SIZES, Report, refusals
from tests.inputs import Inputs

SLICES = list(itertools.product(STORAGES, POSITIONS))
PER_SLICE = 4

by_slice = pytest.mark.parametrize(("storage", "position"), SLICES, ids=["-".join(names) for names in SLICES])


def combinations_of(storage: str, position: str) -> list[Combination]:
    return [Combination(storage, position, *rest) for rest in itertools.product(PATTERNS, WEIGHTINGS)]


def sample(storage: str, position: str) -> list[Combination]:
    """Return the combinations of one slice that are checked every time."""
    seed = SLICES.index((storage, position))
    return random.Random(seed).sample(combinations_of(storage, position), PER_SLICE)


def check_each(some: Iterable[Combination], *, apart: bool) -> None:
    for combination in some:
        try:
            check(combination, apart=apart)
        except Exception as error:
            error.add_note(f"in the combination {combination}")
            raise


@by_slice
def test_a_sample_of_the_combinations_equals_the_oracle_or_is_refused(storage: str, position: str) -> None:
    check_each(sample(storage, position), apart=False)


@pytest.mark.slow
@by_slice
def test_every_combination_equals_the_oracle_or_is_refused(storage: str, position: str) -> None:
    check_each(combinations_of(storage, position), apart=True)


def test_the_sample_has_a_legal_combination_with_every_value_of_every_choice() -> None:
    sampled = [combination for names in SLICES for combination in sample(*names)]
    legal = [combination for combination in sampled if refusals()[combination] is None]
    for index, table in enumerate((STORAGES, POSITIONS, PATTERNS, WEIGHTINGS)):
        assert {combination[index] for combination in legal} == set(table)


def is_undefined(combination: Combination) -> bool:
    """Return what the design refuses, in the words of the names."""
    biases = ("t5-two-sided", "t5-one-sided", "clipped", "shaw", "alibi")
    filtered = combination.pattern not in ("full", "causal")
    undefined_linear = combination.weighting == "linear" and (combination.position in biases or filtered)
    return undefined_linear or (combination.storage.startswith("mla") and combination.position == "rope-partial")


def test_exactly_the_undefined_combinations_are_refused() -> None:
    for combination, refusal in refusals().items():
        assert (refusal is not None) == is_undefined(combination), combination


def test_the_count_and_the_refusals_are_reported(record_property: pytest.RecordProperty) -> None:
    report = Report.of(refusals())
    assert report.legal + report.refused.total() == 5 * 16 * 27 * 7
    assert report.refused == {
        "linear-bias": 5 * 5 * 27,
        "linear-pattern": 5 * 11 * 25,
        "latent-rotary": 2 * (27 * 7 - 25),
    }
    lines = str(report).splitlines()
    assert lines[:2] == [" 12742 legal", "  2378 refused, of which"]
    assert lines[2].startswith("  1375 linear-pattern: linear weighting with a pattern other than full or causal")
    record_property("summary", f"combinations of the four choices\n{report}")


# Values that make no difference would be tested without being tested.


def weights_of(position: str, weighting: str) -> np.ndarray:
    combination = Combination("mha", position, "causal", weighting)
    choices = combination.choices(SIZES)
    fields = {"storage": choices.storage, "position": choices.position, "pattern": choices.pattern}
    spec = ph.AttentionSpec(**fields, weighting=choices.weighting)
    output, weights = Inputs.draw(spec, 0, batch=1, q_len=LONGEST, kv_len=LONGEST).oracle(return_weights=True)
    return weights if position != "shaw" else np.concatenate([weights, output], axis=-1)[..., :LONGEST]


def test_every_position_makes_a_difference() -> None:
    weights = {name: weights_of(name, "softmax") for name in POSITIONS}
    for one, other in itertools.combinations(weights, 2):
        assert np.abs(weights[one] - weights[other]).max() > 1e-3, (one, other)


def test_every_weighting_makes_a_difference() -> None:
    weights = {name: weights_of("none", name) for name in WEIGHTINGS}
    for one, other in itertools.combinations(weights, 2):
        assert np.abs(weights[one] - weights[other]).max() > 1e-3, (one, other)


def test_every_pattern_makes_a_difference() -> None:
    positions = np.arange(LONGEST)
    seen = {}
    for name, build in PATTERNS.items():
        pattern = build(SIZES)
        heads = [pattern.allowed(positions, positions, kv_len=LONGEST, head=head) for head in range(SIZES.num_heads)]
        base = PATTERNS[name.removesuffix("-and-causal")](SIZES)
        if not (name.endswith("-and-causal") and base.is_causal):  # then causal changes nothing, rightly
            assert np.array(heads).tobytes() not in seen, (name, seen[np.array(heads).tobytes()])
            seen[np.array(heads).tobytes()] = name
