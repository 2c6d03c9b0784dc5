"""The knobs of the fifteen: flat settings onto settings, and back."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from polyhead.catalog import TEXTBOOK, Settings, mechanisms
from polyhead.catalog.controls import bigbird_parts, controls, flat_from, settings_from
from polyhead.errors import SpecError
from polyhead.spec import BigBird, Causal, Full, Rotary, SlidingWindow

TURNED: dict[str, tuple[Any, dict[str, Any]]] = {
    "num_groups": (1, {"num_groups": 1}),
    "shared_head": ("mean", {"shared_head": "mean"}),
    "num_heads": (4, {"num_heads": 4}),
    "bias_slope": (0.3, {"bias_slope": 0.3}),
    "rope_theta": (500.0, {"rotary": dataclasses.replace(TEXTBOOK.rotary, theta=500.0)}),
    "rope_pairs": ("half", {"rotary": Rotary(pairs="half", direction="reversed")}),
    "rope_direction": ("paper", {"rotary": Rotary(pairs="interleaved", direction="paper")}),
    "alibi_slope": (2.0, {"alibi_slopes": (2.0,)}),
    "feature_map": ("relu", {"feature_map": "relu"}),
    "window": (3, {"window": SlidingWindow.symmetric(3)}),
    "bigbird_radius": (0, {"bigbird": BigBird(radius=0, num_global=1, num_random=0)}),
    "bigbird_global": (2, {"bigbird": BigBird(radius=1, num_global=2, num_random=0)}),
    "bigbird_random": (2, {"bigbird": BigBird(radius=1, num_global=1, num_random=2)}),
    "bigbird_seed": (7, {}),  # of no links, which there are none of to draw
    "tile": (5, {"tile": 5}),
    "lambda_init": (0.25, {"lambda_init": 0.25}),
    "differential_form": ("paper", {"differential_form": "paper"}),
    "latent_rank": (1, {"latent_rank": 1}),
}


@pytest.mark.parametrize("name", TURNED)
def test_a_knob_turns_what_it_says_and_nothing_else(name: str) -> None:
    value, changed = TURNED[name]
    assert settings_from({name: value}, TEXTBOOK) == dataclasses.replace(TEXTBOOK, **changed)


def test_there_is_a_knob_for_everything_that_is_turned_here() -> None:
    assert [control.name for control in controls()] == list(TURNED)
    assert {name for control in controls() for name in control.mechanisms} < {entry.name for entry in mechanisms()}


def test_a_seed_is_of_links_that_are_drawn() -> None:
    turned = settings_from({"bigbird_random": 3, "bigbird_seed": 7, "bigbird_radius": 0}, TEXTBOOK)
    assert turned.bigbird == BigBird(radius=0, num_global=1, num_random=3, seed=7)


def test_nothing_is_turned_by_nothing() -> None:
    assert settings_from({}, TEXTBOOK) is TEXTBOOK
    assert settings_from({"window": None, "tile": None}, TEXTBOOK) == TEXTBOOK


@pytest.mark.parametrize("settings", [Settings(), TEXTBOOK], ids=["defaults", "textbook"])
def test_back_and_forth(settings: Settings) -> None:
    flat = flat_from(settings)
    assert settings_from(flat, Settings()) == dataclasses.replace(settings, max_distance=Settings().max_distance)
    assert flat_from(settings_from(flat, Settings())) == flat


def test_what_no_knob_can_say_is_none() -> None:
    odd = Settings(window=Full(), bigbird=Causal() | BigBird(block=4), alibi_slopes=(0.5, 0.25))
    flat = flat_from(odd)
    assert [flat[name] for name in ("window", "bigbird_radius", "bigbird_seed", "alibi_slope")] == [None] * 4


@pytest.mark.parametrize("radius", [0, 2])
@pytest.mark.parametrize("num_global", [0, 2])
@pytest.mark.parametrize("num_random", [0, 2])
def test_bigbirds_parts_are_what_it_was_made_of(radius: int, num_global: int, num_random: int) -> None:
    parts: dict[str, Any] = {"radius": radius, "num_global": num_global, "num_random": num_random}
    if num_random:
        parts |= {"seed": 3, "span": "all"}
    assert bigbird_parts(BigBird(**parts)) == parts


def test_what_is_no_bigbird_has_no_parts() -> None:
    for pattern in (Causal(), SlidingWindow(left=2, right=1), BigBird(block=2), Full()):
        assert bigbird_parts(pattern) is None


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"windows": 1}, "there is no setting 'windows'; there are num_groups, shared_head"),
        ({"num_heads": 0}, "num_heads=0 is not allowed; give a whole number of at least 1"),
        ({"num_heads": True}, "num_heads=True is not allowed"),
        ({"num_groups": 1.5}, "num_groups=1.5 is not allowed; give a whole number of at least 1"),
        ({"shared_head": "last"}, "shared_head='last' is not allowed; use 'mean' or 'first'"),
        ({"bias_slope": float("nan")}, "bias_slope=nan is not allowed; give a finite number"),
        ({"rope_theta": 1.0}, "theta=1.0 is not allowed; give a finite number above 1"),
        ({"rope_pairs": "odd"}, "pairs='odd' is not allowed; use 'half' or 'interleaved'"),
        ({"rope_direction": 1}, "direction=1 is not allowed; use 'paper' or 'reversed'"),
        ({"alibi_slope": "steep"}, "alibi_slope='steep' is not allowed; give a finite number"),
        ({"feature_map": "exp"}, "feature_map='exp' is not allowed; use 'elu\\+1' or 'relu' or 'softplus'"),
        ({"window": -1}, "window=-1 is not allowed; give a whole number of at least 0"),
        ({"bigbird_radius": -1}, "bigbird_radius=-1 is not allowed; give a whole number of at least 0"),
        ({"bigbird_global": -1}, "bigbird_global=-1 is not allowed"),
        ({"bigbird_random": "2"}, "bigbird_random='2' is not allowed"),
        ({"bigbird_seed": -1}, "bigbird_seed=-1 is not allowed"),
        ({"tile": 0}, "tile=0 is not allowed; give a whole number of at least 1"),
        ({"lambda_init": []}, r"lambda_init=\[\] is not allowed; give a finite number"),
        ({"differential_form": "diffllama"}, "differential_form='diffllama' is not allowed; use 'clipped' or 'paper'"),
        ({"latent_rank": 0}, "latent_rank=0 is not allowed; give a whole number of at least 1"),
    ],
)
def test_what_is_not_allowed(flat: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        settings_from(flat, TEXTBOOK)


@pytest.mark.parametrize("control", controls(), ids=lambda control: control.name)
def test_a_knob_is_explained_and_starts_within_its_range(control: Any) -> None:
    assert control.label
    assert control.help.endswith(".")
    assert len(inspect.signature(control.write).parameters) == 2
    for settings in (Settings(), TEXTBOOK):
        value = control.read(settings)
        if value is not None and control.minimum is not None:
            assert control.minimum <= value <= (control.maximum or value)
        if value is not None and control.choices:
            assert value in control.choices
