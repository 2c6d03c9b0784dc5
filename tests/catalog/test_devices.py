"""Devices: what is said of each, what a file of one must hold, and what is not known is not guessed."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

import polyhead as ph
from polyhead.catalog.device import FORMATS, Device, read_device, this_machine
from polyhead.errors import CheckpointError, SpecError, UnknownNameError


@pytest.mark.parametrize("device", ph.devices(), ids=lambda device: device.name)
def test_every_figure_has_a_source_and_a_date(device: Device) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", device.name)
    assert ph.device(f" {device.name.upper()} ") is device
    assert set(device.sources) == {"memory", "bandwidth", *(["rates"] if device.rates else [])}
    assert re.fullmatch(r"20\d\d", device.date)


def test_narrower_formats_are_never_slower() -> None:
    for device in ph.devices():
        known = [device.rates[name] for name in FORMATS if name in device.rates]
        assert known == sorted(known), device.name


def test_published_figures() -> None:
    a100 = ph.device("a100-80")
    assert (a100.memory, a100.bandwidth, a100.rate("bf16")) == (80 * 2**30, 2039e9, 312e12)
    with pytest.raises(SpecError, match="no rate is known for fp8, but for float32, bf16, fp16, int8"):
        a100.rate("fp8")
    with pytest.raises(SpecError, match="bf16, nor for any other format"):
        ph.device("m3-max").rate("bf16")
    with pytest.raises(UnknownNameError, match="h100"):
        ph.device("h-100")


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    for device in (*ph.devices(), this_machine()):
        path.write_text(device.to_json(), encoding="utf-8")
        assert read_device(path) == device


def test_this_machine_has_memory_and_no_rates() -> None:
    machine = this_machine()
    assert machine.memory > 2**28
    assert (machine.bandwidth, machine.rates) == (None, {})


def text(**changes: object) -> str:
    data = json.loads(ph.device("l4").to_json()) | changes
    return json.dumps({name: value for name, value in data.items() if value != "left out"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no file of a device"),
        ("[]", '"schema": 1'),
        (text(schema=2), '"schema": 1'),
        (text(memory="left out"), "lacks 'memory'"),
        (text(cores=3), "'cores', which no device has"),
        (text(memory=-1), "memory=-1 is no number above 0"),
        (text(memory="24 GB"), "memory='24 GB'"),
        (text(bandwidth=True), "bandwidth=True"),
        (text(rates={"fp4": 1.0}), "'fp4'"),
        (text(reached={"beauty": 1.0}), "reached names 'beauty'; it may name products, pairs, weights, cache"),
        (text(reached={"cache": 0.0}), "reached['cache']=0.0 is no number above 0"),
        (text(layer_seconds=-1.0), "layer_seconds=-1.0"),
        (text(rates=3), "rates=3 maps no names"),
        (text(sources=[]), "sources=[] maps no names"),
        (text(title=3), "title=3 is no text"),
    ],
)
def test_a_file_that_is_none_says_so(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "device.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(said)):
        read_device(path)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file of a device"):
        read_device(tmp_path / "none.json")


def test_what_is_reached_is_1_unless_it_was_measured() -> None:
    device = dataclasses.replace(ph.device("l4"), reached={"cache": 0.5}, layer_seconds=1e-3)
    assert (device.share("cache"), device.share("pairs")) == (0.5, 1.0)
    assert "50 % by cache" in device.summary()
    assert "1,000 µs" in device.summary()
    assert "reached" not in ph.device("m3-max").summary()
