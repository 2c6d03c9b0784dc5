"""The sentences of a plan: what binds, what would fit, and what changes buy."""

from __future__ import annotations

import re

import pytest

import polyhead as ph
from polyhead.planner.words import changes, nearest, sentences


def said(**options: object) -> str:
    found = ph.plan(**{"model": "llama-3.1-8b", "context": 8192, "device": "a100-80", **options})  # type: ignore[arg-type]
    return "\n".join(sentences(found))


def test_what_binds() -> None:
    text = said()
    assert "Keep GQA-8 + RoPE + causal + softmax" in text
    assert "takes 16.0 GiB of 80.0 GiB: weights 15.0 GiB, cache 1.0 GiB" in text
    assert re.search(r"The prompt takes .* bound by multiplying\.", text)
    assert "A token takes 7.89 ms, bound by reading memory: the cache 0.527 ms" in text


def test_what_takes_its_place() -> None:
    text = said(context=131_072, device="rtx-4090")
    assert "Take GQA-8 + RoPE + mostly windows of 4,096 + softmax, trained anew: as it is" in text
    assert "With no training at all the best is GQA-8 + RoPE + window with first tokens + softmax, of which" in text
    assert "With no more than a conversion" not in text  # what needs no training is better
    assert "GQA-8 + RoPE + causal + softmax fits with a context of 74,003 tokens, or with precision weights=fp8" in text
    assert "cannot do it: its cache grows" in said(context=2**20, task="stream")


def test_an_engine_that_keeps_windows_whole() -> None:
    assert "keeps windows whole, in pages, reserves 16.0 GiB" in said(model="mistral-7b-v0.1", context=131_072)
    assert "An engine" not in said()


@pytest.mark.parametrize(
    ("model", "devices", "shared"),
    [("llama-3-8b", 4, "each has 2 of 8"), ("llama-3-8b", 16, "so some lie on several"), ("deepseek-v2", 2, "latent")],
)
def test_devices(model: str, devices: int, shared: str) -> None:
    assert shared in said(model=model, devices=devices, device="h200")


def test_what_would_fit_does() -> None:
    asked = {"model": "llama-3-8b", "context": 100_000, "device": "l4", "batch": 2}
    found = ph.plan(**asked)  # type: ignore[arg-type]
    text = nearest(found)
    length = int(re.search(r"a context of ([\d,]+) tokens", text).group(1).replace(",", ""))  # type: ignore[union-attr]
    devices = int(re.search(r"(\d+) devices", text).group(1))  # type: ignore[union-attr]
    own = {"from_scratch": False}
    for change in ({"context": length}, {"devices": devices}):
        stack = ph.plan(**{**asked, **own, **change}).own  # type: ignore[arg-type]
        assert stack is not None
        assert not stack.over
    assert ph.plan(**{**asked, "context": length + 1}).own.over  # type: ignore[arg-type, union-attr]


def test_a_narrower_format_may_do() -> None:
    text = nearest(ph.plan("llama-3-70b", context=1000, device="h100"))
    precision = re.search(r"precision (\S+?)[,.]? ", text)
    assert precision is not None
    assert ph.plan("llama-3-70b", context=1000, device="h100", precision=precision.group(1)).own.over == 0  # type: ignore[union-attr]


def test_nothing_at_all_would() -> None:
    text = nearest(ph.plan("deepseek-v3", context=2**26, device="l4", batch=4096))
    assert "No shorter context, smaller batch, narrower format or number of devices changes that." in text
    assert "Nothing can do this: nothing in it" in nearest(
        ph.plan("llama-3-8b", context=10, device="l4", task="translate")
    )


def test_changes_say_what_they_buy_cost_and_take() -> None:
    found = ph.plan("llama-3.1-8b", context=131_072, device="a100-80")
    lines = list(changes(found))
    assert len(lines) == 11
    storage = next(line for line in lines if line.startswith("MLA 512 + 64 (storage)"))
    assert "cache 16.0 GiB to 4.5 GiB" in storage
    assert "48.7 to 50" in storage
    assert "needs training anew" in storage
    window = next(line for line in lines if line.startswith("window (pattern)"))
    assert "its quality is not measured" in window
    assert next(line for line in lines if line.startswith("ALiBi")).count("costs the same") == 1


def test_what_retrieval_buys_is_its_quality() -> None:
    text = said(context=16_384, task="retrieve")
    assert "costs the same; quality: two of six needles in 4K tokens, accuracy against softmax, 0.55 to 0.85" in text


def test_training() -> None:
    text = said(context=8192, task="train", devices=4, device="h100")
    assert "Take MHA + RoPE + causal + softmax, the reference" in text
    assert "A step of training takes" in text
    assert "split evenly between 4 devices" in text
    alone = nearest(ph.plan("llama-3-8b", context=8192, device="h200", task="train", batch=4))
    assert "precision" not in alone
    assert "fits with a context of" in alone
