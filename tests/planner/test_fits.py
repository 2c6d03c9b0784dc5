"""The question turned round: with what is said to fit it does, and with one more it does not."""

from __future__ import annotations

import pytest

import polyhead as ph
from polyhead.cost import memory
from polyhead.errors import UnknownNameError
from polyhead.planner.fits import ASKED, what_fits

MEMORY = ph.device("rtx-4090").memory


def test_the_longest_context() -> None:
    own, *others = what_fits("llama-3-8b", device="rtx-4090")
    assert own.variant.changed == ()
    assert [fit.largest for fit in others] == sorted((fit.largest for fit in others), reverse=True)
    for fit in (own, *others):
        assert fit.memory == memory(fit.variant.model, fit.largest)
        assert fit.memory.total <= MEMORY
        if fit.is_bounded:
            assert memory(fit.variant.model, fit.largest + 1).total > MEMORY
        else:
            assert fit.largest == ASKED["context"]
    assert any(not fit.is_bounded for fit in others)  # a window or a sum does not grow


def test_the_largest_batch() -> None:
    own, *_ = what_fits("llama-3-8b", "batch", device="rtx-4090", context=8192)
    model = ph.model("llama-3-8b")
    assert memory(model, 8192, batch=own.largest).total <= MEMORY < memory(model, 8192, batch=own.largest + 1).total


def test_nothing_fits() -> None:
    for fit in what_fits("llama-3-70b", device="l4"):
        assert (fit.largest, fit.memory) == (0, None)


def test_what_cannot_do_it_says_why() -> None:
    own, *_ = what_fits("llama-3-8b", device="a100-80", task="stream")
    assert (own.largest, own.note) == (0, "its cache grows with every token")
    split, *_ = what_fits("llama-3-8b", device="a100-80", devices=3)
    assert split.note == "32 heads cannot be split between 3 devices; give a divisor of it"


def test_a_longer_context_than_the_model_was_trained_on_is_marked() -> None:
    own, *others = what_fits("llama-3-8b", device="a100-80")
    assert own.note == "trained on 8,192 tokens"
    assert next(fit for fit in others if fit.variant.kinds["position"] == "alibi").note == ""


def test_something_else_is_asked() -> None:
    with pytest.raises(UnknownNameError, match="use one of context, batch"):
        what_fits("llama-3-8b", "heads", device="l4")
