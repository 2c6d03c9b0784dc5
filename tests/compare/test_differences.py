"""Pairs of mechanisms: whether their outputs differ, by how much, and why they should not."""

import numpy as np
import pytest

import polyhead as ph
from polyhead.compare import Difference
from polyhead.compare.differences import EQUAL_BELOW, difference
from tests.compare.arrays import draw, grouped, heads


def pair(comparison: ph.AttentionComparison, first: str, second: str, token: str | int | None = None) -> Difference:
    return difference(comparison.run(first, token), comparison.run(second, token))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("scaled-dot-product", "flash", "the same function, computed in tiles"),
        ("mha", "gqa", "the same spec"),
        ("sliding-window", "bigbird", "both patterns let this token see the same keys"),
    ],
)
def test_the_pairs_that_should_not_differ_for_cat(first: str, second: str, reason: str) -> None:
    d = pair(ph.AttentionComparison(), first, second)
    assert (d.first, d.second, d.differ, d.reason) == (first, second, False, reason)
    assert d.largest < 1e-15


def test_every_other_pair_differs_for_cat_and_needs_no_reason() -> None:
    found = ph.AttentionComparison().differences("cat")
    assert len(found) == 15 * 14 // 2
    differing = [d for d in found if d.differ]
    assert len(differing) == len(found) - 3
    assert min(d.largest for d in differing) > 0.03
    assert {d.reason for d in differing} == {""}


def test_it_depends_on_the_token_what_differs() -> None:
    """A window of 1 and token 0 are all that "cat" sees of BigBird, and not all that "on" sees."""
    assert pair(ph.AttentionComparison(), "sliding-window", "bigbird", "on").differ
    assert not pair(ph.AttentionComparison(), "scaled-dot-product", "causal", "mat").differ


def test_size_of_a_difference() -> None:
    comparison = ph.AttentionComparison()
    gap = comparison.run("causal").output - comparison.run("mla").output
    d = pair(comparison, "causal", "mla")
    assert (d.largest, d.distance) == (pytest.approx(np.abs(gap).max()), pytest.approx(np.linalg.norm(gap)))


def test_reasons_name_the_choice_that_makes_no_difference() -> None:
    comparison = ph.AttentionComparison(*heads())
    position = grouped(4, 8, num_kv_heads=2, position=ph.Alibi(slopes=(0.0,) * 4))
    softcap = grouped(4, 8, num_kv_heads=2, weighting=ph.Softmax(softcap=1e12))
    both = grouped(4, 8, num_kv_heads=2, pattern=ph.Causal(), position=ph.Alibi(slopes=(0.0,) * 4))
    comparison.add("slopes of 0", position).add("no cap", softcap).add("two", both)
    reasons = {
        "mha": "every head still meets the same keys and values",
        "slopes of 0": "position makes no difference to this token",
        "no cap": "both weightings give this token the same weights",
        "two": "position makes no difference to this token and both patterns let this token see the same keys",
    }
    found = {name: pair(comparison, "scaled-dot-product", name) for name in reasons}
    assert {name: d.reason for name, d in found.items()} == reasons
    assert not any(d.differ for d in found.values())


def test_a_latent_of_full_rank_loses_nothing() -> None:
    comparison = ph.AttentionComparison(*draw((5, 4), (5, 4), (5, 4)), settings=ph.Settings(latent_rank=5))
    assert pair(comparison, "scaled-dot-product", "mla").reason == "the latent loses nothing here"


def test_rounding_is_measured_against_the_outputs_size() -> None:
    tiny = [1e-20 * array for array in draw((5, 4), (5, 4), (5, 4))]
    comparison = ph.AttentionComparison(*tiny)
    d = pair(comparison, "scaled-dot-product", "causal", 0)
    assert d.differ
    assert d.largest < EQUAL_BELOW
