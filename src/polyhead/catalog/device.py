"""What is said of a device: its memory, its bandwidth and the rates at which it multiplies, each with its source."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyhead.errors import CheckpointError, SpecError

SCHEMA = 1
_NEEDED = frozenset({"name", "title", "memory", "date"})
FORMATS = ("float32", "bf16", "fp16", "fp8", "int8")
"""Formats in which a device may multiply."""

SHARES = ("products", "pairs", "weights", "cache")
"""What is reached of a rate: by a prompt's products with weights and its pairs, of the rates at which the device
multiplies; by a token's reading of weights and cache, of its bandwidth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """A device.

    ::

        ph.device("a100-80").rate("bf16")  # 312e12

    Attributes:
        name: The name to type, lower case with hyphens.
        title: The name to read.
        memory: Bytes of memory.
        bandwidth: Bytes that it reads from there in a second. None: not known.
        rates: Operations a second in products of dense matrices, by format; a format that is missing is one that it
            lacks, or whose rate its maker does not publish.
        reached: For some of `SHARES`, which part of these rates polyhead reaches there, as `polyhead calibrate`
            measured it; 1 where it says nothing, so that times are the least possible.
        layer_seconds: Seconds that a layer takes for a token however small it is.
        sources: For each figure, where it comes from.
        date: When that was published or measured.
    """

    name: str
    title: str
    memory: int
    bandwidth: float | None = None
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    reached: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    layer_seconds: float = 0.0
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    date: str

    def __post_init__(self) -> None:
        for kind in ("rates", "reached", "sources"):
            if not isinstance(getattr(self, kind), Mapping):
                raise SpecError(f"{kind}={getattr(self, kind)!r} maps no names; give some, as in {{}}")
        for name, figure in self._figures().items():
            if isinstance(figure, bool) or not isinstance(figure, int | float) or not 0 < figure < math.inf:
                raise SpecError(
                    f"{name}={figure!r} is no number above 0; give bytes, rates a second, shares or seconds"
                )
        for name, allowed in (("rates", FORMATS), ("reached", SHARES)):
            if unknown := sorted(set(getattr(self, name)) - set(allowed)):
                raise SpecError(f"{name} names {unknown[0]!r}; it may name {', '.join(allowed)}")
        for name in ("name", "title", "date"):
            if not isinstance(getattr(self, name), str):
                raise SpecError(f"{name}={getattr(self, name)!r} is no text")

    def _figures(self) -> dict[str, Any]:
        """Return the figures that must be numbers above 0, by name."""
        figures: dict[str, Any] = {"memory": self.memory}
        figures |= {} if self.bandwidth is None else {"bandwidth": self.bandwidth}
        figures |= {} if self.layer_seconds == 0 else {"layer_seconds": self.layer_seconds}
        for kind in ("rates", "reached"):
            figures |= {f"{kind}[{name!r}]": rate for name, rate in getattr(self, kind).items()}
        return figures

    def share(self, part: str) -> float:
        """Return which part of a rate is reached, one of `SHARES`; 1 where that was not measured."""
        return self.reached.get(part, 1.0)

    def rate(self, precision: str) -> float:
        """Return operations a second in a format.

        Args:
            precision: The format.

        Returns:
            The peak rate.

        Raises:
            SpecError: If the device has none; the message says which it has.
        """
        if precision not in self.rates:
            known = f"but for {', '.join(self.rates)}" if self.rates else "nor for any other format"
            raise SpecError(f"{self.title}: no rate is known for {precision}, {known}")
        return self.rates[precision]

    def summary(self) -> str:
        """Return what is known of it, in lines to read."""
        lines = [self.title, f"  memory     {self.memory / 2**30:.0f} GiB"]
        lines += [] if self.bandwidth is None else [f"  reads      {self.bandwidth / 1e9:,.1f} GB/s"]
        lines += [f"  multiplies {rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in self.rates.items()]
        lines += [f"  reached    {100 * share:.0f} % by {name}" for name, share in self.reached.items()]
        lines += [f"  a layer    {1e6 * self.layer_seconds:,.0f} µs at least"] if self.layer_seconds else []
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the device as JSON, as `read_device` takes it."""
        return json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False)


def read_device(path: str | os.PathLike[str]) -> Device:
    """Read a device from a file.

    Args:
        path: JSON as `Device.to_json` writes it.

    Returns:
        The device.

    Raises:
        CheckpointError: If the file cannot be read, is not JSON, or lacks something; the message says what.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: this is no file of a device: {error}") from None
    names = [field.name for field in dataclasses.fields(Device)]
    if not isinstance(data, dict) or data.pop("schema", None) != SCHEMA:
        raise CheckpointError(f'{path}: it lacks "schema": {SCHEMA}; Device.to_json() writes what is read here')
    missing, unknown = sorted(_NEEDED - data.keys()), sorted(data.keys() - set(names))
    if missing or unknown:
        what = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which no device has"
        raise CheckpointError(f"{path}: it {what}; a device has {', '.join(names)}")
    try:
        return Device(**data)
    except (SpecError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def calibrated_file() -> Path:
    """Return where `polyhead calibrate` keeps what it measured of this machine, unless it is told another place."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "polyhead" / "this-machine.json"


def this_machine() -> Device:
    """Return this machine: the memory that its system names, and rates only if `polyhead calibrate` measured them.

    Returns:
        The device.

    Raises:
        CheckpointError: If what was measured cannot be read any more.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    title = f"this machine, {_processor()}"
    if calibrated_file().is_file():
        found = read_device(calibrated_file())
        if (found.title, found.memory) == (title, memory):  # else it was measured on another one
            return found
    return Device(
        name="this-machine",
        title=title,
        memory=memory,
        sources={"memory": "the operating system"},
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    )


def _processor() -> str:
    """Return what the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
