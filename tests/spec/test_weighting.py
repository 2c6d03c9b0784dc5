"""How scores become weights, as far as the spec computes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from polyhead.errors import SpecError
from polyhead.spec import Differential, Linear, Softmax
from polyhead.spec.weighting import FEATURE_MAPS


def test_lambda_starts_where_the_paper_says_and_grows_towards_point_eight() -> None:
    by_layer = [Differential(layer=layer).initial_lambda for layer in range(1, 30)]
    assert by_layer[0] == pytest.approx(0.2)
    assert by_layer[1] == pytest.approx(0.8 - 0.6 * math.exp(-0.3))
    assert by_layer == sorted(by_layer)
    assert by_layer[-1] == pytest.approx(0.8, abs=1e-3)


def test_lambda_that_is_given_is_taken() -> None:
    assert Differential(layer=9, lambda_init=0).initial_lambda == 0.0


@pytest.mark.parametrize("name", FEATURE_MAPS)
def test_every_feature_map_has_a_name(name: str) -> None:
    assert Linear(feature_map=name).feature_map == name


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Softmax(scale=math.inf), "scale=inf is not allowed; give a finite number"),
    (lambda: Softmax(softcap=0), "softcap=0 is not allowed; give a finite number above 0"),
    (lambda: Softmax(sink=1), "sink=1 is not allowed; use True or False"),
    (lambda: Linear(feature_map="exp"), "feature_map='exp' is not allowed; use 'elu\\+1' or 'relu' or 'softplus'"),
    (lambda: Differential(form="v2"), "form='v2' is not allowed; use 'paper' or 'diffllama' or 'clipped'"),
    (lambda: Differential(layer=0), "layer=0 is not allowed; give a whole number of at least 1"),
    (lambda: Differential(lambda_init="half"), "lambda_init='half' is not allowed"),
    (lambda: Differential(norm_eps=0.0), "norm_eps=0.0 is not allowed; give a finite number above 0"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_a_weighting_that_is_not_defined_is_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build()


def test_a_scale_may_be_anything_finite() -> None:
    assert [Softmax(scale=scale).scale for scale in (0, -1, 2.5)] == [0.0, -1.0, 2.5]
