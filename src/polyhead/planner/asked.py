"""What is asked of the planner: names looked up, numbers checked, and what is left out filled in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from polyhead.catalog import Device, Model, device as device_named, hf_config, model as model_named
from polyhead.catalog.device import read_device, this_machine
from polyhead.cost import Precision
from polyhead.cost.model import multiplied_in
from polyhead.cost.precision import precision_of
from polyhead.errors import ShapeError, SpecError, UnknownNameError, unknown_name
from polyhead.planner.tasks import Load
from polyhead.spec.choice import as_int

OBJECTIVES = ("latency", "throughput", "memory")

LARGEST = 2**40
"""The largest number of tokens, sequences or devices that is looked at."""


def count_of(name: str, number: int) -> int:
    """Check a number of tokens, sequences or devices; raises SpecError."""
    if as_int(name, number, at_least=1) > LARGEST:
        raise SpecError(f"{name}={number} is past {LARGEST:,}, the most that is looked at; give less")
    return number


def default_task(model: Model) -> str:
    """Return what a model is for: one that attends to an encoder translates, one that sees later tokens encodes."""
    if model.cross_layers:
        return "translate"
    return "generate" if all(layer.attention.pattern.is_causal for layer in model.layers) else "encode"


def most(fits: Callable[[int], bool], least: int, largest: int) -> int:
    """Return the largest number from ``least`` to ``largest`` that fits, 0 if the least does not.

    Args:
        fits: Tells of a number whether it fits; if one does, so do all smaller ones.
        least: The least number.
        largest: The largest.

    Returns:
        The number.
    """
    if not fits(least):
        return 0
    low, high = least, least
    while low == high < largest:
        high = min(2 * high, largest)
        low = high if fits(high) else low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def is_timed(precision: Precision, device: Device) -> bool:
    """Whether times are known: the device's bandwidth, and its rate in the format that products are made in."""
    return device.bandwidth is not None and multiplied_in(precision) in device.rates


def objective_of(asked: str | None, load: Load, device: Device) -> tuple[str, tuple[str, ...]]:
    """Return what is made least, and what is to be said of that; raises where it is not known, or no objective."""
    if asked is not None and asked not in OBJECTIVES:
        raise unknown_name("objective", asked, OBJECTIVES)
    if is_timed(load.precision, device):
        return asked or load.task.objective, ()
    if device.rates:
        device.rate(multiplied_in(load.precision))  # raises, and says which there are
    unknown = "its bandwidth" if device.bandwidth is None else "the rate at which it multiplies"
    if asked in {"latency", "throughput"}:
        raise SpecError(
            f"{device.title}: {unknown} is not known, so nothing can be said of {asked}; ask for optimise='memory', or "
            "give a device whose rates are known: polyhead calibrate writes this machine's"
        )
    measure = " polyhead calibrate measures this machine." if device.name == "this-machine" else ""
    return "memory", (f"Of {device.title} {unknown} is not known, so no time is told, and memory ranks.{measure}",)


def precision_for(given: Precision | str | None, device: Device) -> Precision:
    """Return the formats: those given, or bf16, or float32 where that is all that a device multiplies."""
    if given is not None:
        return precision_of(given)
    return Precision.parse("bf16" if "bf16" in device.rates or not device.rates else next(iter(device.rates)))


def model_of(given: Model | str | os.PathLike[str]) -> Model:
    """Return a model: itself, one of the catalogue by name, or what a config.json or its directory describes."""
    if isinstance(given, Model):
        return given
    if not isinstance(given, str | os.PathLike):
        raise ShapeError(f"model={given!r} is a {type(given).__name__}; give a Model, a name or a path")
    text = os.fspath(given)
    if isinstance(given, str) and not (os.sep in text or Path(text).exists()):
        return model_named(text)
    try:
        return model_named(text)
    except UnknownNameError:
        return hf_config(text)


def device_of(given: Device | str | os.PathLike[str] | None) -> Device:
    """Return a device: itself, one of the catalogue by name, what a file describes, or this machine."""
    if isinstance(given, Device):
        return given
    if given is None:
        return this_machine()
    if not isinstance(given, str | os.PathLike):
        raise ShapeError(f"device={given!r} is a {type(given).__name__}; give a Device, a name or a path")
    path = Path(given)
    return read_device(path) if path.suffix == ".json" or path.is_file() else device_named(str(given))
