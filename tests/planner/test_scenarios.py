"""The textbook's eight deployments: most come out as its choices, by rules and not by looking them up."""

from __future__ import annotations

import re

from polyhead.planner import plan
from polyhead.planner.scenarios import SCENARIOS, answers, book_text, rows


def test_at_least_six_come_out_and_the_others_say_why_in_numbers() -> None:
    found = answers()
    assert len(found) == 8
    assert sum(answer.agrees for answer in found) >= 6
    for answer in found:
        assert answer.plan.best is not None
        assert len(re.findall(r"× [\d.]+ = [\d.]+", answer.reason)) == 2, answer.reason


def test_the_planner_is_asked_and_nothing_looked_up() -> None:
    """Another question of the same model, and another answer."""
    retrieval = next(one for one in SCENARIOS if one.name == "long-context retrieval")
    generating = plan(**{**retrieval.question, "task": "generate"})
    assert generating.best is not None
    assert generating.best.variant.kinds["weighting"] not in retrieval.book["weighting"]


def test_rows_are_for_people_to_read() -> None:
    for row, scenario in zip(rows(), SCENARIOS, strict=True):
        assert row["book"] == book_text(scenario)
        assert row["planned"].count(" + ") >= 3
        assert scenario.question["model"] in row["asked"]
