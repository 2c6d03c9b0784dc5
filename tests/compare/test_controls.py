"""A mechanism's knobs for one input: where they stand, how far they turn, and which would turn nothing."""

from __future__ import annotations

from typing import Any

import pytest

import polyhead as ph
from polyhead.catalog.controls import settings_from
from polyhead.compare.controls import controls_of
from tests.compare.arrays import draw, heads, inputs


def knobs(comparison: ph.AttentionComparison, name: str) -> dict[str, dict[str, Any]]:
    return {control["name"]: control for control in controls_of(comparison, name)}


def stands(comparison: ph.AttentionComparison, name: str) -> dict[str, Any]:
    return {key: control["value"] for key, control in knobs(comparison, name).items()}


def test_of_the_example() -> None:
    found = {entry.name: stands(ph.AttentionComparison(), entry.name) for entry in ph.mechanisms()}
    assert found == {
        "scaled-dot-product": {},
        "mha": {"num_heads": 2},
        "causal": {},
        "cross": {},
        "mqa": {"num_heads": 2, "shared_head": "first"},
        "gqa": {"num_heads": 2, "num_groups": 2, "shared_head": "first"},
        "relative-bias": {"bias_slope": 0.5},
        "rope": {"rope_theta": 10000.0, "rope_pairs": "interleaved", "rope_direction": "reversed"},
        "alibi": {"alibi_slope": 1.0},
        "linear": {"feature_map": "elu+1"},
        "sliding-window": {"window": 1},
        "bigbird": {"bigbird_radius": 1, "bigbird_global": 1, "bigbird_random": 0},
        "flash": {"tile": 2},
        "differential": {"lambda_init": 0.5, "differential_form": "clipped"},
        "mla": {"latent_rank": 2},
    }


def test_ranges_are_the_inputs() -> None:
    comparison = ph.AttentionComparison(*draw((5, 6), (5, 6), (5, 6)), num_heads=3)
    assert knobs(comparison, "mha")["num_heads"]["choices"] == [1, 2, 3, 6]
    assert knobs(comparison, "gqa")["num_groups"]["choices"] == [1, 3]
    ranges = {
        (name, key): (control["min"], control["max"])
        for name in ("sliding-window", "bigbird", "mla", "differential")
        for key, control in knobs(comparison, name).items()
        if control["kind"] != "choice"
    }
    assert ranges == {
        ("sliding-window", "window"): (0, 4),
        ("bigbird", "bigbird_radius"): (0, 4),
        ("bigbird", "bigbird_global"): (0, 5),
        ("bigbird", "bigbird_random"): (0, 5),
        ("bigbird", "bigbird_seed"): (0, 99),
        ("mla", "latent_rank"): (1, 5),
        ("differential", "lambda_init"): (0.0, 1.0),
    }


def test_a_value_beyond_what_is_offered_widens_the_range() -> None:
    comparison = ph.AttentionComparison(settings=ph.Settings(tile=16, bias_slope=-1.0, alibi_slopes=(9.0,)))
    assert knobs(comparison, "flash")["tile"]["max"] == 16
    assert knobs(comparison, "relative-bias")["bias_slope"]["min"] == -1.0
    assert knobs(comparison, "alibi")["alibi_slope"]["max"] == 9.0


def test_several_heads_are_not_split_and_show_their_own_slope() -> None:
    comparison = ph.AttentionComparison(*heads(), head=1)
    assert (stands(comparison, "mha"), stands(comparison, "mqa")) == ({}, {"shared_head": "mean"})
    assert knobs(comparison, "gqa")["num_groups"]["choices"] == [1, 2]
    assert stands(comparison, "alibi") == {"alibi_slope": 2.0**-4}
    assert stands(comparison, "mla") == {"latent_rank": 3}  # half of what six tokens have


def test_what_would_turn_nothing_is_left_out() -> None:
    own = ph.AttentionComparison.from_inputs(inputs(ph.Rotary(), num_kv_heads=1), title="own")
    assert stands(own, "rope") == {}
    assert stands(own, "mqa") == {}
    odd = ph.AttentionComparison(settings=ph.Settings(window=ph.Full(), bigbird=ph.BigBird(block=2)))
    assert (stands(odd, "sliding-window"), stands(odd, "bigbird")) == ({}, {})


def test_a_combination_has_none() -> None:
    assert controls_of(ph.AttentionComparison().add("mine", ph.mechanism("causal").spec), "mine") == []


def test_what_cannot_run_keeps_its_knobs_so_that_it_can() -> None:
    settings = ph.Settings(num_heads=2, num_groups=4)
    assert stands(ph.AttentionComparison(settings=settings), "gqa")["num_groups"] == 4
    assert knobs(ph.AttentionComparison(settings=settings), "gqa")["num_groups"]["choices"] == [1, 2]


@pytest.mark.parametrize("given", [[], draw((5, 4), (5, 4), (5, 4)), heads()], ids=["example", "one head", "several"])
def test_every_end_of_a_range_and_every_choice_runs(given: Any) -> None:
    """Turning one knob as far as it goes, from where the others stand."""
    comparison = ph.AttentionComparison(*given)
    for entry in ph.mechanisms():
        for control in controls_of(comparison, entry.name):
            for value in control["choices"] or (control["min"], control["max"]):
                if (control["name"], value) == ("num_heads", 1):  # which leaves a group for each of one head
                    continue
                flat = {"num_groups": 1} if control["name"] == "num_heads" else {}
                turned = settings_from(flat | {control["name"]: value}, comparison.settings)
                assert ph.AttentionComparison(*given, settings=turned).run(entry.name).name == entry.name
