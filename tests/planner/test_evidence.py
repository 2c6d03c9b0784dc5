"""Published figures: what they lose, which of them counts, and that each option has a name."""

from __future__ import annotations

import math

import pytest

from polyhead.planner.evidence import AS_IT_IS, CHOICES, CONVERSIONS, EVIDENCE, REFERENCE, Evidence, found_for
from polyhead.planner.options import NAMES


def one(reference: float | None, found: float | None, **more: object) -> Evidence:
    given = {"option": ("storage", "gqa"), "domain": "language", "what": "a score", "source": "a paper", **more}
    return Evidence(reference=reference, found=found, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("evidence", "loss"),
    [
        (one(50.0, 49.0), 0.02),
        (one(50.0, 51.0), 0.0),
        (one(5.0, 6.0, higher_is_better=False), 0.2),
        (one(5.0, 4.0, higher_is_better=False), 0.0),
        (one(None, 5.0), None),
        (one(None, None, no_change=True), 0.0),
    ],
)
def test_what_is_lost(evidence: Evidence, loss: float | None) -> None:
    assert evidence.loss == (loss if loss is None else pytest.approx(loss))


def test_it_is_told_with_its_source() -> None:
    assert str(one(50.0, 49.0)) == "a score, 50 to 49 (a paper)"
    assert str(one(None, 5.4)) == "a score: 5.4 (a paper)"
    assert str(one(None, None, no_change=True)) == "a score (a paper)"


def test_every_option_has_a_name_and_every_figure_a_source() -> None:
    options = {evidence.option for evidence in EVIDENCE} | REFERENCE | AS_IT_IS | CONVERSIONS.keys()
    assert options <= NAMES.keys()
    assert {choice for choice, _ in NAMES} == set(CHOICES)
    for evidence in EVIDENCE:
        assert any(word in evidence.source for word in ("arXiv", "model zoo")), evidence
        assert evidence.no_change == (evidence.reference is None and evidence.found is None)
        assert evidence.loss is None or math.isfinite(evidence.loss)


def test_the_first_source_in_the_nearest_domain_counts() -> None:
    gqa = found_for(("storage", "gqa"), ("language",))
    assert [one.reference for one in gqa] == [47.2, 45.2]
    assert found_for(("weighting", "differential"), ("retrieval", "language"))[0].reference == 0.55
    assert found_for(("weighting", "differential"), ("language",))[0].reference == 55.4
    assert found_for(("pattern", "mostly-window"), ("retrieval",)) == ()


def test_what_was_converted_counts_for_conversions() -> None:
    assert found_for(("storage", "mla"), ("language",), converted=True)[0].found == 25.8047
    assert found_for(("storage", "mla"), ("language",))[0].found == 50.0
    # a recipe that trains further was measured with that
    assert found_for(("storage", "gqa"), ("language",), converted=True) == found_for(("storage", "gqa"), ("language",))
