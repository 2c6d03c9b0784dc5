"""Through Compare and Plan with the keyboard alone."""

from __future__ import annotations

from typing import Any

import polyhead as ph
from polyhead.catalog import TEXTBOOK
from polyhead.catalog.controls import settings_from
from polyhead.compare import AttentionComparison
from polyhead.planner.words import sentences
from tests.page.browsing import READ_OUTPUTS, READ_TABLE, Visit, expected_outputs, expected_table, settled

MOST_STOPS = 90


def tab_to(page: Any, selector: str) -> None:
    """Go from stop to stop until the one that a selector names has the focus."""
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement?.matches(selector) ?? false", selector):
            return
    raise AssertionError(f"{selector} was not reached in {MOST_STOPS} stops")


def focused_label(page: Any) -> str:
    return str(page.evaluate("document.activeElement.getAttribute('aria-label')"))


def test_through_compare(visit: Visit) -> None:
    page = visit()
    page.wait_for_selector("article[data-mechanism=mla]")
    tab_to(page, "a.skip")
    page.keyboard.press("Enter")
    tab_to(page, ".tokens input")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    wanted = expected_outputs(AttentionComparison(), 4)
    assert settled(page, READ_OUTPUTS, wanted) == wanted

    tab_to(page, "[data-mechanism=causal] .weights")
    assert focused_label(page).startswith("Causal attention: most on ")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert focused_label(page) == "Causal attention: “cat” 0.159"
    page.keyboard.press("End")
    assert focused_label(page) == "Causal attention: “mat” 0.159"
    page.keyboard.press("Escape")
    assert focused_label(page).startswith("Causal attention: most on ")

    tab_to(page, "#sliding-window-window")
    page.keyboard.press("ArrowRight")
    turned = AttentionComparison(settings=settings_from({"window": 2}, TEXTBOOK))
    wanted = expected_outputs(turned, 4)
    assert settled(page, READ_OUTPUTS, wanted) == wanted

    page.keyboard.press("t")
    wanted = expected_table(turned, 4)
    assert settled(page, READ_TABLE, wanted) == wanted
    page.keyboard.press("t")
    page.wait_for_selector("article[data-mechanism=mla]")
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_through_plan(visit: Visit) -> None:
    page = visit("#1?plan.device=a100-80")
    page.wait_for_selector("article[data-mechanism=mla]")
    tab_to(page, 'nav a[href*="plan"]')
    page.keyboard.press("Enter")
    answer = page.locator(".answer")
    wanted = next(iter(sentences(ph.plan("llama-3.1-8b", context=131_072, device="a100-80"))))
    assert settled(page, READ_ANSWER, wanted) == wanted
    tab_to(page, "input[aria-valuetext='131,072 tokens']")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("input[aria-valuetext='262,144 tokens']")
    wanted = next(iter(sentences(ph.plan("llama-3.1-8b", context=262_144, device="a100-80"))))
    assert settled(page, READ_ANSWER, wanted) == wanted, answer.inner_text()

    tab_to(page, "[data-chart][tabindex], [role=img][tabindex]")
    said = focused_label(page)
    page.keyboard.press("ArrowRight")
    assert focused_label(page) != said
    page.keyboard.press("t")
    page.wait_for_selector("caption >> text=Bytes of the cache, by tokens")


READ_ANSWER = "() => document.querySelector('.answer')?.textContent ?? ''"
