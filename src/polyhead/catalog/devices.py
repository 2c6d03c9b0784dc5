"""Devices by name, as their makers describe them: memory, bandwidth, and rates of dense products.

Makers give rates with structured sparsity beside, or in place of, dense ones; here they are dense. Where rates depend
on how sums are kept, these are with sums in float32. NVIDIA's figures for A100, H100, H200, B200 and L40S were compared
with copies in public places (LLM-Prof's hardware_spec.md, gpu-datasheet's README, hmc-tech.com). Memory is counted in
GiB, as systems show it.
"""

from __future__ import annotations

from collections.abc import Mapping

from polyhead.catalog.device import Device
from polyhead.errors import unknown_name


def _of(
    name: str, title: str, *, gib: int, gb_s: float, source: str, date: str, tera: Mapping[str, float] | None = None
) -> Device:
    """Return a device whose figures all come from one document; rates in 10¹² operations a second."""
    return Device(
        name=name,
        title=title,
        memory=gib * 2**30,
        bandwidth=gb_s * 1e9,
        rates={precision: rate * 1e12 for precision, rate in (tera or {}).items()},
        sources=dict.fromkeys(("memory", "bandwidth", *(("rates",) if tera else ())), source),
        date=date,
    )


_AMPERE = {"float32": 19.5, "bf16": 312.0, "fp16": 312.0, "int8": 624.0}
_HOPPER = {"float32": 66.9, "bf16": 989.4, "fp16": 989.4, "fp8": 1978.9, "int8": 1978.9}


def _rates(float32: float, bf16: float, fp8: float, int8: float) -> dict[str, float]:
    return {"float32": float32, "bf16": bf16, "fp16": bf16, "fp8": fp8, "int8": int8}


_A100, _H100, _H200 = "NVIDIA A100 data sheet", "NVIDIA H100 white paper and data sheet", "NVIDIA H200 data sheet"
_B200 = "NVIDIA DGX B200 data sheet, an eighth of its eight GPUs"
_L4, _L40S = "NVIDIA L4 data sheet, half of its rates with sparsity", "NVIDIA L40S data sheet"
_ADA, _BLACKWELL = "NVIDIA Ada white paper, appendix A", "NVIDIA RTX Blackwell white paper, appendix A"
_MI300X = "AMD Instinct MI300X data sheet"
_MACBOOK, _STUDIO = "Apple, MacBook Pro technical specifications", "Apple, Mac Studio technical specifications"
_EPYC = "AMD: 12 × DDR5-4800 of 64 GB; 96 cores × 2.4 GHz × 32 operations in float32, 64 in bf16"

DEVICES = (
    _of("a100-40", "NVIDIA A100 SXM 40 GB", gib=40, gb_s=1555, tera=_AMPERE, source=_A100, date="2021"),
    _of("a100-80", "NVIDIA A100 SXM 80 GB", gib=80, gb_s=2039, tera=_AMPERE, source=_A100, date="2021"),
    _of("h100", "NVIDIA H100 SXM 80 GB", gib=80, gb_s=3350, tera=_HOPPER, source=_H100, date="2023"),
    _of("h200", "NVIDIA H200 SXM 141 GB", gib=141, gb_s=4800, tera=_HOPPER, source=_H200, date="2024"),
    _of(
        "b200",
        "NVIDIA B200 180 GB",
        gib=180,
        gb_s=8000,
        tera=_rates(75.0, 2250.0, 4500.0, 4500.0),
        source=_B200,
        date="2024",
    ),
    _of("l4", "NVIDIA L4 24 GB", gib=24, gb_s=300, tera=_rates(30.3, 121.0, 242.5, 242.5), source=_L4, date="2023"),
    _of(
        "l40s",
        "NVIDIA L40S 48 GB",
        gib=48,
        gb_s=864,
        tera=_rates(91.6, 362.05, 733.0, 733.0),
        source=_L40S,
        date="2023",
    ),
    _of(
        "rtx-4090",
        "NVIDIA GeForce RTX 4090 24 GB",
        gib=24,
        gb_s=1008,
        tera=_rates(82.6, 165.2, 330.3, 660.6),
        source=_ADA,
        date="2022",
    ),
    _of(
        "rtx-5090",
        "NVIDIA GeForce RTX 5090 32 GB",
        gib=32,
        gb_s=1792,
        tera=_rates(104.8, 209.5, 419.0, 838.0),
        source=_BLACKWELL,
        date="2025",
    ),
    _of(
        "mi300x",
        "AMD Instinct MI300X 192 GB",
        gib=192,
        gb_s=5300,
        tera=_rates(163.4, 1307.4, 2614.9, 2614.9),
        source=_MI300X,
        date="2023",
    ),
    _of("m3-max", "Apple M3 Max 128 GB, 40-core GPU", gib=128, gb_s=400, source=_MACBOOK, date="2023"),
    _of("m3-ultra", "Apple M3 Ultra 512 GB, 80-core GPU", gib=512, gb_s=819, source=_STUDIO, date="2025"),
    _of(
        "epyc-9654",
        "AMD EPYC 9654, 768 GB",
        gib=768,
        gb_s=460.8,
        tera={"float32": 7.37, "bf16": 14.7},
        source=_EPYC,
        date="2022",
    ),
)
"""Every device, those of one maker side by side. Apple publishes no rates, so none are here."""


def devices() -> tuple[Device, ...]:
    """Return the devices of the catalogue."""
    return DEVICES


def device(name: str) -> Device:
    """Look a device up.

    Args:
        name: Its name, in any case, such as ``"a100-80"``.

    Returns:
        The device.

    Raises:
        UnknownNameError: If none goes by that name; the message names the nearest.
    """
    wanted = name.strip().lower()
    for one in DEVICES:
        if one.name == wanted:
            return one
    raise unknown_name("device", name, [one.name for one in DEVICES])
