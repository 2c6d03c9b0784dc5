"""The page in a real browser: what it shows is what the library computes, by mouse, by keyboard and by link."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.catalog import TEXTBOOK, mechanism, mechanisms
from polyhead.catalog.controls import settings_from
from polyhead.compare import AttentionComparison
from polyhead.dashboard.answers import Dashboard
from tests.hf.conftest import TEXT
from tests.page.browsing import READ_OUTPUTS, READ_TABLE, Visit, expected_outputs, expected_table, settled
from tests.page.conftest import served

SCREENS = ("compare", "matrix", "compose", "plan", "measure", "learn")


@pytest.fixture(scope="module")
def comparison() -> AttentionComparison:
    return AttentionComparison()


def test_each_token_updates_all_fifteen_panels(visit: Visit, comparison: AttentionComparison) -> None:
    page = visit()
    for position, token in enumerate(comparison.tokens):
        page.locator(".tokens label", has_text=token).first.click()
        wanted = expected_outputs(comparison, position)
        assert len(wanted) == 15
        assert settled(page, READ_OUTPUTS, wanted) == wanted


def test_weights_and_outputs_are_the_librarys_to_four_decimals(visit: Visit, comparison: AttentionComparison) -> None:
    page = visit("#1?tables=true")
    for position, token in enumerate(comparison.tokens):
        page.locator(".tokens label", has_text=token).first.click()
        wanted = expected_table(comparison, position)
        assert settled(page, READ_TABLE, wanted) == wanted


def test_mat_has_equal_weights_under_causal_and_standard(visit: Visit) -> None:
    page = visit("#1?token=4&tables=true")
    page.wait_for_selector("tr[data-mechanism=causal]")
    rows = page.evaluate(READ_TABLE)
    assert rows["causal"] == rows["scaled-dot-product"]
    page.get_by_role("button", name="Tables").click()
    said = page.locator("article[data-mechanism=causal] .distance").inner_text()
    assert said == "equal to #1: both patterns let this token see the same keys"


def test_what_is_hatched_cannot_be_seen(visit: Visit) -> None:
    page = visit()
    page.wait_for_selector("article[data-mechanism=differential]")
    hatched = {
        name: page.locator(f"article[data-mechanism={name}] .hatched").count() for name in ("causal", "differential")
    }
    assert hatched == {"causal": 3, "differential": 0}  # a weight that is cut off at 0 is of a key that is seen


def test_where_no_weight_differs_the_difference_says_so(visit: Visit) -> None:
    page = visit('#1?screen=matrix&heat.difference=true&heat.names=["scaled-dot-product","flash"]')
    page.get_by_text("A − B: no weight differs").wait_for()
    page = visit("#1?screen=matrix&heat.difference=true")
    page.get_by_text("A − B, up to 0.7907").wait_for()


def test_heads_half_typed_take_no_key_value_heads_away(visit: Visit) -> None:
    page = visit("#1?screen=compose")
    page.locator("#storage-num_heads").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("64")
    assert page.locator("#storage-num_kv_heads").input_value() == "8"


TURNED: dict[str, tuple[str, Any]] = {
    "sliding-window": ("window", 2),
    "alibi": ("alibi_slope", 0.3),
    "differential": ("lambda_init", 0.25),
    "relative-bias": ("bias_slope", 2.0),
    "mla": ("latent_rank", 4),
    "gqa": ("num_groups", 1),
    "linear": ("feature_map", "relu"),
    "rope": ("rope_theta", 100.0),
    "bigbird": ("bigbird_radius", 0),
}


SLIDE = """(element, value) => {
    element.value = value;
    element.dispatchEvent(new Event("input", {bubbles: true}));
}"""


def test_moving_a_mechanisms_own_parameter_updates_it_at_once(visit: Visit) -> None:
    page = visit()
    for name, (setting, value) in TURNED.items():
        control = page.locator(f"#{name}-{setting}")
        before = control.evaluate("element => element.value")
        if isinstance(value, str) or setting == "num_groups":
            control.select_option(label=str(value))
        else:
            control.evaluate(SLIDE, _position(control, value))
        assert control.evaluate("element => element.value") != before
    turned = dict(TURNED.values())
    wanted = expected_outputs(AttentionComparison(settings=settings_from(turned, TEXTBOOK)), 1)
    assert settled(page, READ_OUTPUTS, wanted) == wanted


def _position(control: Any, value: float) -> float:
    """Return where a slider stands at a value: in equal ratios where it spans decades."""
    if control.get_attribute("id") != "rope-rope_theta":
        return value
    import math

    return 200 * math.log(value / 2) / math.log(1e7 / 2)


def test_a_link_shows_again_what_was_seen(visit: Visit) -> None:
    page = visit()
    page.locator(".tokens label", has_text="mat").click()
    page.locator("#sliding-window-window").press("ArrowRight")
    page.locator("#linear-feature_map").select_option("softplus")
    settings = settings_from({"window": 2, "feature_map": "softplus"}, TEXTBOOK)
    wanted = expected_outputs(AttentionComparison(settings=settings), 4)
    assert settled(page, READ_OUTPUTS, wanted) == wanted
    fragment = page.evaluate("location.hash")
    assert fragment.startswith("#1?")

    again = visit(fragment)
    assert settled(again, READ_OUTPUTS, wanted) == wanted
    assert again.evaluate("location.hash") == fragment
    again.evaluate("location.hash = '#1?token=0'")  # as somebody would who edits the address
    wanted = expected_outputs(AttentionComparison(), 0)
    assert settled(again, READ_OUTPUTS, wanted) == wanted


@pytest.mark.parametrize(
    "fragment",
    ["#2?token=1", "#1?screen=nowhere&token=x", "#1?token=99", "#1?heat=3&matrix.settings=0&__proto__.x=1", "#%"],
)
def test_a_link_that_means_nothing_shows_the_beginning(visit: Visit, fragment: str) -> None:
    page = visit(fragment)
    page.wait_for_selector("article[data-mechanism=mla]")
    assert page.locator("article[data-mechanism]").count() == 15
    assert page.locator("[role=alert]").count() == (1 if fragment.startswith("#2") else 0)


@pytest.mark.parametrize("name", ["mla", "alibi", "bigbird", "linear"])
def test_a_link_shows_again_what_was_composed(visit: Visit, name: str) -> None:
    page = visit("#1?screen=compose")
    page.get_by_role("button", name=name, exact=True).click()
    spec = repr(mechanism(name).spec)
    page.get_by_text(spec, exact=True).first.wait_for()
    again = visit(page.evaluate("location.hash"))
    again.get_by_text(spec, exact=True).first.wait_for()


@pytest.mark.parametrize("spec", ["5", "{}", '{"pattern":{"type":"AllOf","parts":5}}'])
def test_a_link_to_what_is_no_spec_shows_the_first(visit: Visit, spec: str) -> None:
    page = visit(f"#1?screen=compose&compose.spec={spec}")
    page.get_by_text(re.compile(r"Legal\.\s*GQA-8 \+ RoPE \+ causal \+ softmax")).wait_for()


def test_a_setting_that_a_mechanism_cannot_take_is_told(visit: Visit) -> None:
    page = visit("#1?matrix.settings.num_groups=3")
    page.locator("article[data-mechanism=gqa] [role=alert]", has_text="3").wait_for()


def test_a_control_that_moves_fast_ends_where_it_stops(visit: Visit) -> None:
    page = visit()
    slider = page.locator("#differential-lambda_init")
    for _ in range(12):
        slider.press("ArrowLeft", delay=0)
    value = float(slider.input_value())
    wanted = expected_outputs(AttentionComparison(settings=settings_from({"lambda_init": value}, TEXTBOOK)), 1)
    assert settled(page, READ_OUTPUTS, wanted) == wanted


def test_a_sentence_through_a_model(visit: Visit, tiny_model: Path) -> None:
    page = visit()
    page.get_by_role("button", name="A sentence through tiny-llama").click()
    page.get_by_label("sentence", exact=True).fill(TEXT)
    page.get_by_label("for cross-attention").fill("")
    page.get_by_role("button", name="Read it").click()
    own = AttentionComparison.from_model(str(tiny_model), TEXT, layer=1)
    page.wait_for_selector(".tokens label:nth-of-type(6)")
    page.get_by_role("button", name="Tables").click()
    wanted = expected_table(own, len(own.tokens) - 1)
    assert settled(page, READ_TABLE, wanted) == wanted
    page.get_by_role("button", name="Tables").click()
    marked = page.evaluate("[...document.querySelectorAll('article.own')].map(panel => panel.dataset.mechanism)")
    assert sorted(marked) == sorted(row.name for row in own.table() if row.is_own)
    assert "cross-attention needs a second sequence" in page.locator(".panel.absent").inner_text()
    assert "a what-if on frozen weights" in page.locator("main").inner_text()

    page.get_by_role("slider", name="layer").press("ArrowLeft")
    page.get_by_role("slider", name="head").press("ArrowRight")
    page.get_by_role("button", name="Tables").click()
    other = AttentionComparison.from_model(str(tiny_model), TEXT, layer=0, head=1)
    wanted = expected_table(other, len(own.tokens) - 1)
    assert settled(page, READ_TABLE, wanted) == wanted


def test_a_server_that_was_given_arrays_begins_with_them(visit: Visit) -> None:
    query, key, value = np.random.default_rng(0).normal(size=(3, 2, 6, 4))
    file = io.BytesIO()
    np.savez(file, query=query, key=key, value=value)
    page = visit(base=served(Dashboard.of().beginning_with(file.getvalue(), "qkv.npz")))
    page.get_by_role("button", name="Tables").click()
    wanted = expected_table(AttentionComparison(query, key, value), 5)
    assert settled(page, READ_TABLE, wanted) == wanted
    page.get_by_role("button", name="The shared example").click()
    wanted = expected_table(AttentionComparison(), 1)
    assert settled(page, READ_TABLE, wanted) == wanted
    page.reload()  # a link says what it differs in from any page, however its server was started
    assert settled(page, READ_TABLE, wanted) == wanted


def test_a_link_to_another_input_asks_for_no_token_of_the_old_one(visit: Visit) -> None:
    """A token past the example's five would be refused, which the browser's console would tell."""
    text = "&".join(f"matrix.source.{name}={value}" for name, value in SOURCE.items())
    page = visit(f"#1?screen=learn&token=12&{text}")
    page.wait_for_selector(".tokens label:nth-of-type(13)")
    page.wait_for_selector("svg.stage")

    def late(route: Any) -> None:
        time.sleep(0.4)
        route.continue_()

    page.route("**/api/v1/matrix", late)
    page.evaluate("location.hash = '#1?screen=learn&mechanism=rope'")
    page.wait_for_selector(".tokens:not(:has(label:nth-of-type(6)))")
    page.wait_for_load_state("networkidle")
    page.wait_for_selector("svg.stage")


SOURCE = {"kind": "text", "layer": 0, "head": 0, "bare": "false", "second_text": "null", "text": TEXT}


def test_a_whole_matrix_and_a_difference(visit: Visit, comparison: AttentionComparison) -> None:
    page = visit('#1?screen=matrix&tables=true&heat.names=["rope","alibi"]&heat.difference=true')
    page.wait_for_selector("table")
    captions = page.locator("caption").all_inner_texts()
    assert captions[2] == "Rotary position embedding minus Attention with linear biases"
    cells = page.locator("table").nth(2).locator("td").all_inner_texts()
    gap = comparison.result("rope").weights[0] - comparison.result("alibi").weights[0]
    assert [float(cell.replace("−", "-")) for cell in cells] == pytest.approx(gap.ravel().tolist(), abs=5e-5)


@pytest.mark.parametrize("screen", SCREENS)
def test_nothing_serious_stands_in_the_way_of_anybody(visit: Visit, screen: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(f"#1?screen={screen}")
    page.wait_for_load_state("networkidle")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        found = axe.run(page).response["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], scheme


def test_every_mechanism_is_there(visit: Visit) -> None:
    page = visit()
    page.wait_for_selector("article[data-mechanism=mla]")
    shown = page.evaluate("[...document.querySelectorAll('article[data-mechanism]')].map(p => p.dataset.mechanism)")
    assert sorted(shown) == sorted(entry.name for entry in mechanisms())


def test_numbers_are_saved_with_all_their_digits(visit: Visit, comparison: AttentionComparison) -> None:
    page = visit()
    page.wait_for_selector("article[data-mechanism=mla]")
    csv = _saved(page, "Numbers, CSV").read_text(encoding="utf-8").splitlines()
    assert len(csv) == 16
    first = comparison.run("scaled-dot-product", "cat")
    assert [float(cell) for cell in csv[1].split(",")[1:]] == [*first.weights, *first.output, 0.0]
    data = json.loads(_saved(page, "Numbers and state, JSON").read_text(encoding="utf-8"))
    assert data["state"]["screen"] == "compare"
    assert data["link"].startswith("http://127.0.0.1")


def test_pictures_are_saved(visit: Visit) -> None:
    page = visit()
    page.wait_for_selector("article[data-mechanism=mla]")
    svg = _saved(page, "Picture, SVG").read_text(encoding="utf-8")
    assert "0.5179" in svg
    assert "Rotary" in svg
    assert _saved(page, "Picture, PNG").read_bytes().startswith(b"\x89PNG")


def _saved(page: Any, label: str) -> Path:
    page.locator(".menu summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=label).click()
    return Path(download.value.path())
