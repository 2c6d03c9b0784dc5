"""`polyhead calibrate`: a device file that the planner reads. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import polyhead as ph
from polyhead.catalog.device import calibrated_file, read_device
from tests.cli.conftest import Polyhead


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_it_writes_what_plan_reads(call: Polyhead, quick: Path) -> None:
    done = call("calibrate", "--seconds", "0.02", "--threads", "1")
    assert done.code == 0
    assert "written to" in done.out
    assert "measuring" in done.err
    device = read_device(calibrated_file())
    assert device.reached.keys() == {"pairs", "cache", "products", "weights"}
    assert device.layer_seconds > 0
    assert device.rates.keys() == {"float32", "bf16"}
    timed = ph.plan("smollm2-135m", context=100)
    assert timed.device == device
    assert timed.objective == "latency"


def test_a_file_of_ones_choice(call: Polyhead, quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.bench.calibrate.calibrate", lambda **options: ph.device("l4"))
    assert call("calibrate", str(quick / "here.json")).code == 0
    assert read_device(quick / "here.json").name == "l4"
    done = call("calibrate", "-")
    assert json.loads(done.out)["name"] == "l4"
    assert not calibrated_file().exists()
    refused = call("calibrate", str(quick))
    assert refused.code == 2
    assert f"cannot write {quick}" in refused.err
