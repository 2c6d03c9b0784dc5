"""Calibrating: what is measured is given back by the planner's formula. No time is asserted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import pytest

import polyhead as ph
from polyhead.bench import calibrate as module
from polyhead.bench.calibrate import LAYERS, SHORT, calibrate, check_plan, table
from polyhead.bench.cases import case
from polyhead.bench.ceilings import Ceilings
from polyhead.bench.timer import Turns
from polyhead.catalog.configs import describe
from polyhead.cost import decode_work, prefill_work, seconds

WIDE = {**module.WIDE, "hidden_size": 256, "intermediate_size": 704}
PROMPT = 128
"""Less than what is timed, since the times are given."""


def at_fixed_times(monkeypatch: pytest.MonkeyPatch, times: Mapping[str, float]) -> None:
    """Let each run take a time that is given, by its name, and run it once all the same."""

    def measured(runs: Mapping[str, Callable[[], object]], *, base: str, seconds: float) -> Turns:
        for run in runs.values():
            run()
        return Turns({name: (times[f"small {name}" if len(runs) == 1 else name],) * 5 for name in runs}, base)

    monkeypatch.setattr(module, "measure", measured)


def test_the_formula_gives_back_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"causal": 0.004, "decode-gqa": 0.0002, "small token": 0.004, "prompt": 0.5, "token": 0.02}
    at_fixed_times(monkeypatch, times)
    monkeypatch.setattr(module, "case", lambda name: case(name).at(512))
    monkeypatch.setattr(module, "WIDE", WIDE)
    monkeypatch.setattr(module, "PROMPT", PROMPT)
    found = Ceilings(dtype="float32", flops=1e11, read_bytes=2e10, threads=1)
    monkeypatch.setattr(module, "measure_ceilings", lambda dtype, *, seconds: found)
    device = calibrate(seconds=0.05)
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=LAYERS, vocab_size=256, tie_word_embeddings=False, max_position_embeddings=4096, **WIDE
    )
    wide = describe(config.to_dict(), name="wide", title="wide", source="here")
    prompt = seconds(prefill_work(wide, PROMPT, precision="float32"), device, precision="float32")
    token = seconds(decode_work(wide, SHORT, precision="float32"), device, precision="float32")
    assert prompt.total == pytest.approx(0.5, rel=0.02)
    assert token.total == pytest.approx(0.02, rel=0.02)
    assert device.layer_seconds == pytest.approx(0.004 / LAYERS, rel=0.1)


@pytest.mark.model
def test_predictions_stand_beside_measurements() -> None:
    device = dataclasses.replace(ph.device("l4"), rates={"float32": 1e11})
    record = check_plan(device, lengths=(8,), seconds=0.01)
    assert [(row["what"], row["tokens"]) for row in record["rows"]] == [("prompt", 8), ("token", 8)]
    for row in record["rows"]:
        assert row["measured_seconds"] > 0
        assert row["predicted_seconds"] > 0
    assert table(record).count("\n") == 3
